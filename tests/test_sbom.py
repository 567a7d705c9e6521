# SPDX-License-Identifier: Apache-2.0
"""The wheel's list of contents (release/sbom.py). `make wheel` checks it against the schema."""

import hashlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import release_scripts

CPU = {"compiler": "GNU 12.2.0"}
CUDA = {**CPU, "cuda": "13.0.88", "architectures": "80-real 120"}


@pytest.fixture
def sbom() -> ModuleType:
    return release_scripts.load("sbom")


@pytest.fixture
def unpacked(tmp_path: Path) -> Path:
    (tmp_path / "microspec_kernels").mkdir()
    (tmp_path / "microspec_kernels" / "ops.py").write_text("pass\n")
    (tmp_path / "microspec_kernels" / "libmicrospec.so").write_bytes(b"\x7fELF")
    (tmp_path / "microspec_kernels-1.2.dist-info").mkdir()
    (tmp_path / "microspec_kernels-1.2.dist-info" / "METADATA").write_text("Name: x\n")
    return tmp_path


def listed(sbom: ModuleType, folder: Path, built_with: dict[str, str]) -> Any:
    return sbom.contents(folder, "microspec-kernels", "1.2", built_with, "2.13.0+cpu")


def test_each_file_is_listed_with_its_digest(sbom: ModuleType, unpacked: Path) -> None:
    bom = listed(sbom, unpacked, CPU)
    assert bom["metadata"]["component"]["purl"] == "pkg:pypi/microspec-kernels@1.2"
    names = {file["name"]: file["hashes"][0]["content"] for file in bom["components"]}
    assert names == {
        "microspec_kernels/ops.py": hashlib.sha256(b"pass\n").hexdigest(),
        "microspec_kernels/libmicrospec.so": hashlib.sha256(b"\x7fELF").hexdigest(),
    }
    references = [file["bom-ref"] for file in bom["components"]]
    assert bom["dependencies"][0]["dependsOn"] == references


@pytest.mark.parametrize(("built_with", "cuda"), [(CPU, []), (CUDA, ["13.0.88"])])
def test_the_library_has_what_it_was_built_with(
    sbom: ModuleType, unpacked: Path, built_with: dict[str, str], cuda: list[str]
) -> None:
    files = {file["name"]: file for file in listed(sbom, unpacked, built_with)["components"]}
    assert "components" not in files["microspec_kernels/ops.py"]
    parts = {
        part["name"]: part for part in files["microspec_kernels/libmicrospec.so"]["components"]
    }
    assert parts["torch"]["purl"] == "pkg:pypi/torch@2.13.0"
    assert parts["libstdc++"]["version"] == "12.2.0"
    runtime = [part for name, part in parts.items() if name == "cudart_static"]
    assert [part["version"] for part in runtime] == cuda
    assert all("needs driver 580 or later" in part["description"] for part in runtime)


def test_the_same_files_give_the_same_list(sbom: ModuleType, unpacked: Path) -> None:
    first = listed(sbom, unpacked, CUDA)
    assert listed(sbom, unpacked, CUDA) == first
    (unpacked / "microspec_kernels" / "ops.py").write_text("other\n")
    assert listed(sbom, unpacked, CUDA)["serialNumber"] != first["serialNumber"]
