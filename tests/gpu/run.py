# SPDX-License-Identifier: Apache-2.0
"""Run all GPU tests and compute-sanitizer over every kernel, and write a report.

    python tests/gpu/run.py [--quick] [--parts tests,memcheck,…] [--out DIR] [--budget SECONDS]
    python tests/gpu/run.py --combine A.json B.json [--out DIR]

The report is gpu-tests.md and .json, by default under bench/results/<gpu>/. Several commands can
run the parts, each with a separate time limit; --combine merges their JSON files. Exit status 0
means that all requested parts ran and passed.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE.parent), str(ROOT)]

from bench.harness.limited import run_limited  # noqa: E402
from gpu import report  # noqa: E402  (beside this file)

SANITIZERS = ("memcheck", "racecheck", "synccheck")
PARTS = ("tests", "ops", *SANITIZERS)
# Each part's share of the time: the sanitizers slow the kernels down by a factor of 10 to 100.
SHARES = {"tests": 5.0, "ops": 3.0, "memcheck": 3.0, "racecheck": 4.0, "synccheck": 2.0}


FACTS = """
import json, torch, microspec_kernels as mk
found = {"torch": torch.__version__, "cuda": str(torch.version.cuda), "microspec": mk.__version__}
found |= {"backend": mk.backend(), "device": "none"}
if torch.cuda.is_available():
    device = torch.cuda.get_device_properties(0)
    found |= {"device": device.name, "capability": f"{device.major}.{device.minor}"}
    found |= {"SMs": device.multi_processor_count, "L2": f"{device.L2_cache_size >> 20} MB"}
print(json.dumps(found))
"""


def lead_import_path() -> None:
    """Let the processes that this one starts import the package, the tests and bench."""
    paths = [str(ROOT), str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))


def output_of(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    except OSError as error:
        return f"{command[0]}: {error.strerror}"
    return (done.stdout or done.stderr).strip()


def environment() -> dict[str, str]:
    """Query the device in another process, so that this process leaves it alone."""
    fields = "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,memory.total"
    told = output_of(sys.executable, "-c", FACTS).splitlines()
    facts = (
        json.loads(told[-1]) if told and told[-1].startswith("{") else {"error": "; ".join(told)}
    )
    facts["nvidia-smi"] = output_of("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader")
    facts["nvcc"] = output_of("nvcc", "--version").rsplit("\n", 1)[-1]
    facts["commit"] = os.environ.get("MICROSPEC_COMMIT") or output_of(
        "git", "describe", "--always", "--dirty"
    )
    facts["date"] = time.strftime("%Y-%m-%d")
    return {name: str(value) for name, value in facts.items()}


def run_logged(command: list[str], log: Path, seconds: float) -> report.Results:
    """Run a command, log its output, and return how it ended."""
    extra = {"PYTHONUNBUFFERED": "1"}
    if "compute-sanitizer" in command[0]:
        extra["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
    ended = run_limited(command, seconds, log=log, environment={**os.environ, **extra}, grace=20)
    return {
        "seconds": ended.seconds,
        "exit": ended.code,
        "timed_out": ended.code is None,
        "tail": log.read_text(errors="replace")[-3000:],
        "passed": ended.code == 0,
    }


def run_pytest(name: str, chosen: list[str], out: Path, seconds: float) -> report.Results:
    """Run tests; the log is ``out``/``name``.log."""
    junit = out / f"{name}.xml"
    command = [sys.executable, "-m", "pytest", *chosen, "--tb=short", f"--junitxml={junit}"]
    result = run_logged(command, out / f"{name}.log", seconds)
    found: report.Results = {"files": {}, "failures": [], "skips": {}, "notes": [], "slowest": []}
    if junit.exists():
        found = report.from_junit(junit)
        junit.unlink()
    ran = sum(count.get("passed", 0) for count in found["files"].values())
    return {**result, **found, "passed": result["passed"] and ran > 0}


def run_tests(part: str, out: Path, seconds: float, soak: float) -> report.Results:
    chosen = ["tests/gpu", f"--soak-seconds={soak}"]
    if part == "ops":  # the CPU's tests, over the device
        files = [
            f for f in sorted(HERE.parent.glob("test_*.py")) if "mark.backends" in f.read_text()
        ]
        chosen = [*map(str, files), "-k", "cuda"]
    return run_pytest(part, chosen, out, seconds)


def driver_seconds(seconds: float, quick: bool) -> float:
    """Return how long the sanitizer's driver may start cases.

    The rest of the part's time is for its start and its last case: 45 s, of a short part a half.
    """
    own = max(seconds - 45, seconds / 2)
    return min(60.0, own) if quick else own


def run_sanitizer(tool: str, out: Path, seconds: float, quick: bool) -> report.Results:
    sanitizer = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    log = out / f"{tool}.log"
    command = [sanitizer, "--tool", tool, "--kernel-name", "kns=microspec"]
    command += ["--error-exitcode", "42", "--report-api-errors", "no", "--print-limit", "50"]
    command += ["--padding", "256"] if tool == "memcheck" else []
    command += [sys.executable, str(HERE / "sanitizer_driver.py")]
    command += ["--seconds", f"{driver_seconds(seconds, quick):.0f}"]
    if not Path(sanitizer).exists():
        missing = {"seconds": 0.0, "exit": None, "timed_out": False, "tail": f"no {sanitizer}"}
        return {**missing, **report.from_sanitizer(""), "passed": False}
    result = run_logged(command, log, seconds)
    result |= report.from_sanitizer(log.read_text(errors="replace"))
    complete = quick or result["cases"] == result["of"]
    return {**result, "passed": result["passed"] and complete and result["cases"] > 0}


def write(results: report.Results, out: Path) -> bool:
    (out / "gpu-tests.json").write_text(json.dumps(results, indent=1) + "\n")
    text = report.markdown(results)
    (out / "gpu-tests.md").write_text(text)
    print(text)
    return all(part["passed"] for part in results["parts"].values())


def combine(files: list[Path]) -> report.Results:
    """Merge the parts of one device; of a repeated part the last run counts."""
    runs = [json.loads(file.read_text()) for file in files]
    devices = {run["environment"].get("device") for run in runs}
    if len(devices) != 1:
        raise SystemExit(f"expected runs of one device, got {sorted(map(str, devices))}")
    parts = {name: part for run in runs for name, part in run["parts"].items()}
    return {"environment": runs[-1]["environment"], "parts": parts}


def results_folder(facts: dict[str, str]) -> Path:
    slug = re.sub(r"[^a-z0-9]+", "-", facts.get("device", "none").lower()).strip("-")
    return ROOT / "bench" / "results" / slug


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="5 s of soak, a minute a sanitizer")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--out", type=Path, help="default: bench/results/<gpu>")
    parser.add_argument("--budget", type=float, default=1140, help="seconds for all the parts")
    parser.add_argument("--soak-seconds", type=float, default=20)
    parser.add_argument("--combine", type=Path, nargs="+", metavar="JSON")
    args = parser.parse_args()
    parts = [part for part in args.parts.split(",") if part]
    if unknown := set(parts) - set(PARTS):
        parser.error(f"no such parts: {', '.join(sorted(unknown))}")
    lead_import_path()
    if args.combine:
        results = combine(args.combine)
        out = args.out or results_folder(results["environment"])
        out.mkdir(parents=True, exist_ok=True)
        return 0 if write(results, out) else 1
    facts = environment()
    if facts.get("device", "none") == "none":
        print(f"NOT RUN: no CUDA device ({facts.get('error', 'torch sees none')})")
        return 1
    out = args.out or results_folder(facts)
    out.mkdir(parents=True, exist_ok=True)
    results = {"environment": facts, "parts": {}}
    end = time.monotonic() + args.budget
    passed = True
    for index, part in enumerate(parts):
        left = end - time.monotonic() - 10
        seconds = max(30.0, left * SHARES[part] / sum(SHARES[p] for p in parts[index:]))
        if part in SANITIZERS:
            found = run_sanitizer(part, out, seconds, args.quick)
        else:
            found = run_tests(part, out, seconds, 5 if args.quick else args.soak_seconds)
        results["parts"][part] = found
        if found["passed"]:
            (out / f"{part}.log").unlink(missing_ok=True)
        passed = write(results, out)  # after each part, in case a later part hangs
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
