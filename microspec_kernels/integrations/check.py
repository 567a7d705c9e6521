# SPDX-License-Identifier: Apache-2.0
"""Say which hook points of the plugins a version of vLLM or SGLang has.

    python -m microspec_kernels.integrations.check vllm-0.34.0-….whl unpacked/sglang

Reads sources only: nothing of an engine is installed or imported. Exits with 1 if a hook point does
not fit. The plugins check the same list at their start.
"""

import argparse
import contextlib
import importlib
import re
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from .hooks import Expectation

ENGINES = ("vllm", "sglang")


class Package(NamedTuple):
    """An engine's sources.

    Attributes:
        engine: one of :data:`ENGINES`.
        version: its version; None if unknown.
        root: folder of the package.
    """

    engine: str
    version: str | None
    root: Path


class Finding(NamedTuple):
    """A hook point and what is wrong with it; None if it fits."""

    hook_point: Expectation
    problem: str | None


def check(package: Package) -> list[Finding]:
    """Compare each hook point of the engine's plugin with the package."""
    plugin = importlib.import_module(f".{package.engine}.hook_points", __package__)
    return [Finding(each, each.problem(package.root)) for each in plugin.HOOK_POINTS]


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Package]:
    """Read a wheel, an unpacked wheel's folder or an engine's package folder.

    Raises:
        ValueError: the path is none of them.
    """
    if path.is_file():
        with tempfile.TemporaryDirectory() as folder:
            try:
                with zipfile.ZipFile(path) as wheel:
                    names = [name for name in wheel.namelist() if _is_read(name)]
                    wheel.extractall(folder, names)
            except zipfile.BadZipFile as error:
                raise ValueError(
                    f"{path}: expected a wheel or a folder, got another file"
                ) from error
            yield _package(path, Path(folder))
    else:
        yield _package(path, path.parent if path.name in ENGINES else path)


def _is_read(name: str) -> bool:
    top = name.split("/")[0]
    return (top in ENGINES and name.endswith(".py")) or name.endswith(".dist-info/METADATA")


def _package(path: Path, folder: Path) -> Package:
    engines = [engine for engine in ENGINES if (folder / engine / "__init__.py").is_file()]
    if path.name in ENGINES and path.name in engines:
        engines = [path.name]
    if len(engines) != 1:
        raise ValueError(f"{path}: expected the package of one engine, got {engines or 'none'}")
    (engine,) = engines
    for metadata in folder.glob(f"{engine}*.dist-info/METADATA"):
        found = re.search(r"^Version: (.+)$", metadata.read_text(encoding="utf-8"), re.MULTILINE)
        if found:
            return Package(engine, found[1].strip(), folder / engine)
    return Package(engine, None, folder / engine)


def report(package: Package, findings: Sequence[Finding]) -> str:
    """Return the findings as text, one line for each hook point."""
    plugin = importlib.import_module(f".{package.engine}.hook_points", __package__)
    name = f"{package.engine} {package.version or 'of an unknown version'}"
    tested = ", ".join(plugin.TESTED)
    known = package.version is not None and plugin.is_tested(package.version)
    fit = sum(finding.problem is None for finding in findings)
    lines = [f"{name}, {'tested' if known else f'not among the tested versions {tested}'}"]
    for hook_point, problem in findings:
        lines.append(f"  {'fits' if problem is None else 'DIFFERS':8}{hook_point}")
        if problem is not None:
            lines.append(f"          {problem}")
    return "\n".join([*lines, f"{name}: {fit} of {len(findings)} hook points fit"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Check each path of the command line; return 1 if a hook point differs, else 0."""
    parser = argparse.ArgumentParser(
        prog="python -m microspec_kernels.integrations.check", description=__doc__.split("\n")[0]
    )
    parser.add_argument("paths", metavar="WHEEL", nargs="+", type=Path, help="wheel or folder")
    differs = False
    for path in parser.parse_args(arguments).paths:
        try:
            with opened(path) as package:
                findings = check(package)
        except (ValueError, OSError) as error:
            parser.error(str(error))
        print(report(package, findings))
        differs |= any(finding.problem is not None for finding in findings)
    return int(differs)


if __name__ == "__main__":
    sys.exit(main())
