# SPDX-License-Identifier: Apache-2.0
"""Make a wheel for one processor: build it, list its contents, tag and check it.
python release/make_wheel.py x86_64|aarch64 [FOLDER]
"""

import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import sbom
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

ROOT = Path(__file__).resolve().parents[1]
GLIBC_MINOR = 28
# torch has loaded it before this package's library is: it is never packed.
OUTSIDE = "libtorch_cpu.so"
CROSS = {
    "aarch64": [
        "-DCMAKE_SYSTEM_NAME=Linux",
        "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
        "-DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++",
        "-DMICROSPEC_CUDA=OFF",
    ]
}
EXPORTS = set(re.findall(r"^ +(\w+);$", (ROOT / "csrc/exports.map").read_text(), re.MULTILINE))


def run(*command: str | Path, **variables: str) -> str:
    done = subprocess.run(
        [str(word) for word in command],
        cwd=ROOT,
        env=os.environ | variables,
        stdout=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        sys.exit(f"{done.stdout}exit status {done.returncode}: {' '.join(map(str, command))}")
    return done.stdout


def python(*words: str | Path, **variables: str) -> str:
    return run(sys.executable, "-m", *words, **variables)


def build(processor: str, folder: Path) -> Path:
    """The wheel as the compiler leaves it, for whichever Linux this is."""
    options = [*os.environ.get("CMAKE_ARGS", "").split(), "-DMICROSPEC_MANYLINUX=ON"]
    if processor != platform.machine():
        options += CROSS[processor]
    (folder / "plain").mkdir(parents=True, exist_ok=True)
    python(
        *("pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps"),
        f"--config-settings=--build-option=--plat-name=linux_{processor}",
        *("--wheel-dir", folder / "plain", "."),
        MICROSPEC_BUILD_DIR=str(folder),
        CMAKE_ARGS=" ".join(options),
    )
    (wheel,) = (folder / "plain").glob("*.whl")
    return wheel


def symbols_of(library: Path, which: str) -> list[list[str]]:
    """Name and kind of dynamic symbols, the name with its version if it has one."""
    listing = run("nm", "--dynamic", "--with-symbol-versions", which, "--format=posix", library)
    return [line.split()[:2] for line in listing.splitlines()]


def check_symbols(library: Path) -> None:
    """End if others can see more than they must, or if a symbol may come from any version."""
    exported = {name for name, _ in symbols_of(library, "--defined-only")}
    if exported != EXPORTS:
        sys.exit(f"{library}: exports other symbols than {sorted(EXPORTS)}: {sorted(exported)}")
    taken = [name for name, kind in symbols_of(library, "--undefined-only") if kind == "U"]
    if unversioned := [name for name in taken if "@" not in name and "torch_" not in name]:
        sys.exit(f"{library}: release/manylinux.cmake has to name {unversioned}")


def with_contents(wheel: Path, folder: Path) -> Path:
    """The wheel with a list of its contents beside its metadata, where PEP 770 has it."""
    python("wheel", "unpack", "--dest", folder / "unpacked", wheel)
    (unpacked,) = (folder / "unpacked").iterdir()
    check_symbols(unpacked / "microspec_kernels/libmicrospec.so")
    built_with = json.loads((folder / "built_with.json").read_text())
    name, version = wheel.name.split("-")[:2]
    listed = sbom.contents(
        unpacked,
        name.replace("_", "-"),
        version,
        built_with,
        importlib.metadata.version("torch"),
    )
    text = json.dumps(listed, indent=1)
    if error := JsonStrictValidator(SchemaVersion.V1_6).validate_str(text):
        sys.exit(f"the list of contents is no CycloneDX: {error}")
    (place,) = unpacked.glob("*.dist-info")
    (place / "sboms").mkdir()
    (place / "sboms" / "microspec-kernels.cdx.json").write_text(text + "\n")
    (folder / "packed").mkdir()
    python("wheel", "pack", "--dest-dir", folder / "packed", unpacked)
    (packed,) = (folder / "packed").glob("*.whl")
    return packed


def tagged(wheel: Path, processor: str, destination: Path) -> Path:
    """The wheel for every Linux with that glibc, once auditwheel has found nothing against it."""
    tag = f"manylinux_2_{GLIBC_MINOR}_{processor}"
    seen = json.loads(python("auditwheel", "show", "--json", wheel))
    symbols, outside = seen["sym_tag"], set(seen["external_libs"])
    minor = re.fullmatch(rf"manylinux_2_(\d+)_{processor}", symbols)
    if minor is None or int(minor[1]) > GLIBC_MINOR:
        sys.exit(f"{wheel.name}: by its symbols {symbols}, which is later than {tag}")
    if outside != {OUTSIDE} or seen["unsupported_isa"]:
        sys.exit(f"{wheel.name}: {tag} has not all that it needs: {json.dumps(seen, indent=1)}")
    print(f"{wheel.name}: by its symbols {symbols} or later, tagged {tag}")
    destination.mkdir(parents=True, exist_ok=True)
    name = python("wheel", "tags", "--remove", "--platform-tag", tag, wheel).split()[-1]
    return Path(shutil.move(wheel.with_name(name), destination / name))


def main(processor: str, destination: str = "dist") -> None:
    folder = ROOT / "build" / f"wheel-{processor}"
    for name in ("plain", "unpacked", "packed"):
        shutil.rmtree(folder / name, ignore_errors=True)
    wheel = with_contents(build(processor, folder), folder)
    tagged_wheel = tagged(wheel, processor, ROOT / destination)
    print(python("twine", "check", "--strict", tagged_wheel), end="")


if __name__ == "__main__":
    main(*sys.argv[1:])
