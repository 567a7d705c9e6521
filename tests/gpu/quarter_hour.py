# SPDX-License-Identifier: Apache-2.0
"""Learn the most from a GPU in ten minutes: is it right, how fast is it, is it free of races?

    python tests/gpu/quarter_hour.py [STAGE …] [--out DIR] [--budget SECONDS] [--quick]
    python tests/gpu/quarter_hour.py --prepare 90    without a GPU: what a bare copy needs
    python tests/gpu/quarter_hour.py --list          the stages and their limits

Stages run in order of importance, each within its own limit and the rest of the budget; one with
too little time left is left out. After each stage, all results so far are packed into
DIR/<device>-quarter-hour.tar.gz, with the report DIR/<device>-quarter-hour.md beside it: two files,
whole at every moment. They are unpacked by ``tar -C bench/results -xzf FILE``.

It also runs from a bare copy of the checkout, without a repository, compiler or installation:
``--prepare`` says what to take along. MICROSPEC_COMMIT names the commit there. Named stages add
their results to those of an earlier call.
"""

import argparse
import importlib.util
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE.parent), str(ROOT)]

from bench.harness import archive  # noqa: E402
from gpu import conformance, report, run  # noqa: E402  (beside this file)

WORK = ROOT / "build" / "quarter-hour"
LIBRARY = ROOT / "microspec_kernels" / "libmicrospec.so"
BUDGET = 560.0  # seconds, of the ten minutes that a caller may have
QUICK = 600.0  # limit of a quick stage, as a guard against a hang
PROCESSES = max(1, min(6, (os.cpu_count() or 2) // 2))
LLAMA = ("--model", "Llama-3.1-8B")
IN_SITU = ("--situations", "in situ")

# Called with the stage's folder, its limit and whether the run is a quick one.
Run = Callable[[Path, float, bool], report.Results]


@dataclass(frozen=True)
class Stage:
    limit: float  # seconds
    question: str
    run: Run


def program(*words: str, quick: tuple[str, ...] | None = None) -> Run:
    """Run a Python program. ``quick``: its words in a quick run; default the same."""

    def start(out: Path, seconds: float, is_quick: bool) -> report.Results:
        chosen = words if quick is None or not is_quick else quick
        command = [sys.executable, *(word.format(out=out) for word in chosen)]
        return {**run.run_logged(command, out / "log", seconds), "shown": True}

    return start


def benchmark(module: str, *words: str, quick: tuple[str, ...] = ()) -> Run:
    start = ("-m", module, "--out", "{out}")
    return program(*start, *words, quick=(*start, "--quick", *quick))


def tests(names: str, *words: str, parallel: bool = False) -> Run:
    """Run files of tests/gpu; ``parallel``: in several processes, if pytest-xdist is installed."""

    def start(out: Path, seconds: float, is_quick: bool) -> report.Results:
        files = [str(HERE / f"test_{name}.py") for name in names.split()]
        several = parallel and importlib.util.find_spec("xdist") is not None
        more = ["-n", str(PROCESSES), "--dist", "worksteal"] if several else []
        return run.run_pytest("tests", [*files, *words, *more], out, seconds)

    return start


def sanitizer(tool: str) -> Run:
    return lambda out, seconds, is_quick: run.run_sanitizer(tool, out, seconds, quick=True)


STAGES = {
    "probe": Stage(60, "what is there, and does each op work?", program(str(HERE / "probe.py"))),
    # Tests that want the device for themselves, before those that share it.
    "right-alone": Stage(60, "are primitives, launches, streams and messages right?",
                         tests("conformance kernels streams validate")),
    "right": Stage(90, "are the ops right at real sizes, and the vLLM plugin?", tests(
        "real_sizes engine_head vllm_drafter policy_graph opcheck",
        "-k", "not (gemma or qwen or 1000000)", parallel=True)),
    "micro": Stage(90, "how long does an op take, beside its floor?", benchmark(
        "bench.ops.compare_builds", "--num-tokens", "1,10,60",
        quick=("--num-tokens", "1", "--only", "sparse_head packed int8"))),
    "draft": Stage(90, "how long does a whole draft take?", benchmark(
        "bench.draft.step", *LLAMA, "--context", "1024", "--quick")),
    "e2e": Stage(60, "how many tokens a second, target included?", benchmark(
        "bench.e2e", "--pairs", "Llama-3.1-8B", "--context", "1024", "--texts", "1", "--rounds",
        "15", "--plain", quick=("--arms", "dense,packed", "--rounds", "1"))),
    "memcheck": Stage(75, "does a kernel touch memory that is not its own?", sanitizer("memcheck")),
    "racecheck": Stage(75, "does a kernel race in shared memory?", sanitizer("racecheck")),
    "graphs": Stage(80, "does one graph serve 10,000 steps?", tests(
        "graphs soak", "--soak-seconds=6")),
    "in-situ": Stage(110, "how long does the head take behind a draft layer?", benchmark(
        "bench.ops.head", *LLAMA, "--k", "3072", "--num-tokens", "1,10,60", *IN_SITU,
        quick=IN_SITU)),
    "draft-full": Stage(150, "the draft, with compiled, Triton and 8-bit arms", benchmark(
        "bench.draft.step", *LLAMA, "--context", "1024", quick=("--arms", "packed"))),
    "engine": Stage(60, "what does an engine's step pay?", benchmark(
        "bench.decoding.engine_overhead")),
    "l2": Stage(45, "does it pay to keep the slab in L2?", benchmark(
        "bench.tuning.slab_in_l2", quick=("--num-tokens", "1"))),
    "rest": Stage(400, "all of tests/gpu, and the op tests over the device", program(
        str(HERE / "run.py"), "--parts", "tests,ops", "--budget", "390", "--soak-seconds", "10",
        "--out", "{out}", quick=(str(HERE / "run.py"), "--parts", "memcheck", "--quick",
                                 "--out", "{out}"))),
}  # fmt: skip
ESSENTIAL = "probe"  # if it fails, no other stage runs


def prepare(architecture: int) -> None:
    """Build what a machine without a compiler needs, and say what to take along."""
    taken = [LIBRARY, conformance.build(architecture)]
    if absent := [str(path) for path in taken if not path.exists()]:
        raise SystemExit(f"no {', '.join(absent)}: run make build")
    for path in taken:
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 2**20:.1f} MiB")


def run_stage(name: str, left: float, quick: bool, folder: Path) -> report.Results:
    """Run a stage, unless less than half of its limit is left."""
    stage = STAGES[name]
    limit = QUICK if quick else min(stage.limit, left)
    if limit < stage.limit / 2:
        print(f"{name}: left out, {left:.0f} s left", flush=True)
        return {"seconds": 0.0, "left_out": True}
    print(f"{name}: {stage.question} (at most {limit:.0f} s)", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    return stage.run(folder, limit, quick)


def run_stages(args: argparse.Namespace, facts: dict[str, str], work: Path) -> bool:
    """Run the stages, and return whether all of them ran and passed."""
    end = time.monotonic() + args.budget
    held = work / "results.json"
    parts = json.loads(held.read_text())["parts"] if held.exists() else {}
    results = {"environment": facts, "parts": parts}
    for name in args.stages:
        parts[name] = run_stage(name, end - time.monotonic(), args.quick, work / name)
        work.mkdir(parents=True, exist_ok=True)
        held.write_text(json.dumps(results, indent=1) + "\n")
        (work / "report.md").write_text(report.markdown(results))
        kept = args.out / f"{work.parent.name}-{work.name}"
        archive.pack(work.parent, kept.with_suffix(".tar.gz"))
        shutil.copy(work / "report.md", kept.with_suffix(".md"))
        if name == ESSENTIAL and parts[name]["exit"] not in (0, report.SOME_WRONG):
            print(f"STOPPED: {name} failed")
            break
    print(report.markdown(results))
    return all(parts.get(name, {}).get("passed") for name in args.stages)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"of {', '.join(STAGES)}")
    parser.add_argument("--out", type=Path, default=WORK, help="folder of the two files")
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds for all the stages")
    parser.add_argument("--quick", action="store_true", help="small models: shows that it works")
    parser.add_argument("--prepare", type=int, metavar="ARCH", help="90 for sm_90: build for it")
    parser.add_argument("--list", action="store_true", help="name the stages")
    args = parser.parse_args()
    if unknown := set(args.stages) - set(STAGES):
        parser.error(f"no such stages: {', '.join(sorted(unknown))}")
    args.fresh, args.stages = not args.stages, args.stages or list(STAGES)
    return args


def main() -> int:
    args = parsed()
    if args.list:
        print(*(f"{n:12} {s.limit:4.0f} s  {s.question}" for n, s in STAGES.items()), sep="\n")
        return 0
    if args.prepare:
        prepare(args.prepare)
        return 0
    run.lead_import_path()
    facts = run.environment()
    if facts.get("device", "none") == "none":
        print(f"NOT RUN: no CUDA device ({facts.get('error', 'torch sees none')})")
        return 1
    work = WORK / run.results_folder(facts).name / "quarter-hour"
    if args.fresh:
        shutil.rmtree(work, ignore_errors=True)
    return 0 if run_stages(args, facts, work) else 1


if __name__ == "__main__":
    sys.exit(main())
