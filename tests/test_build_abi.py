# SPDX-License-Identifier: Apache-2.0
"""The compiled library: its imports from torch and Python, and the ops that it registers."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from schemas import SCHEMAS

import microspec_kernels._library

pytestmark = pytest.mark.xdist_group("library")  # one process loads and lists it

LIBRARY = microspec_kernels._library.PATH
TARGET = (2, 10)

# The package is not imported, so only the library's registrations are visible. The scalars pass
# through TORCH_BOX alone, which would read a C++ float as 0 and truncate a C++ int.
LOAD = """
import json, sys, torch
torch.ops.load_library(sys.argv[1])
names = [str(s) for s in torch._C._jit_get_all_schemas() if s.name.startswith("microspec::")]
ids = torch.tensor([0], dtype=torch.int32)
x, w = torch.tensor([[3.0]]), torch.tensor([[5.0]])
half = torch.ops.microspec.sparse_logits(x, w, ids, logit_scale=0.5).item()
capped = torch.ops.microspec.sparse_logits(x, w, ids, softcap=0.5).item()
try:
    torch.ops.microspec.sparse_head(x, w, ids, 2**33 + 1)
except RuntimeError as error:
    refused = str(error)
print(json.dumps({"schemas": names, "half": half, "capped": capped, "refused": refused}))
"""


@pytest.fixture(scope="module")
def loaded() -> dict:
    """Load the library in a fresh interpreter, because a broken schema ends the process."""
    command = [sys.executable, "-c", LOAD, str(LIBRARY)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr[-2000:]
    return json.loads(run.stdout)


def test_exactly_the_contract_schemas_are_registered(loaded):
    expected = sorted(f"microspec::{name}{schema}" for name, schema in SCHEMAS.items())
    assert sorted(loaded["schemas"]) == expected


def test_scalars_arrive_whole(loaded):
    assert loaded["half"] == 7.5
    assert loaded["capped"] == pytest.approx(0.5)
    assert str(2**33 + 1) in loaded["refused"]


@pytest.fixture(scope="module")
def undefined() -> list[str]:
    """Return the mangled names that the library imports."""
    if shutil.which("nm") is None:
        pytest.skip("needs binutils' nm")
    listing = subprocess.run(
        ["nm", "--dynamic", "--undefined-only", "--format=posix", str(LIBRARY)],
        capture_output=True,
        text=True,
        check=True,
    )
    names = [line.split()[0].split("@")[0] for line in listing.stdout.splitlines()]
    assert "torch_library_impl" in names  # this shows that the library's imports are visible
    return names


def is_private_to_torch(symbol: str) -> bool:
    """Check a mangled name. Each part follows its length: at::Tensor is 2at6Tensor."""
    return re.search(r"(?<!\d)(2at|3c10|5torch)(?=\d|[A-Z])", symbol) is not None


def test_the_check_below_knows_private_symbols():
    assert is_private_to_torch("_ZN2at6detail10empty_cpuEN3c108ArrayRefIlEENS1_10ScalarTypeE")
    assert is_private_to_torch("_ZN3c105ErrorC1ENS_14SourceLocationENSt7__cxx1112basic_stringE")
    assert is_private_to_torch("_ZNK5torch8autograd4Node4nameEv")
    assert not is_private_to_torch("_ZNSt6thread20hardware_concurrencyEv")
    assert not is_private_to_torch("aoti_torch_get_data_ptr")


def test_nothing_of_torchs_unstable_cpp_api_is_used(undefined):
    assert [symbol for symbol in undefined if is_private_to_torch(symbol)] == []


def test_nothing_of_python_is_used(undefined):
    assert [symbol for symbol in undefined if re.match(r"_?Py", symbol)] == []


def test_nothing_of_cuda_is_needed(undefined):
    """A library with GPU kernels must load without GPU, driver and runtime."""
    needed = subprocess.run(
        ["readelf", "--dynamic", str(LIBRARY)], capture_output=True, text=True, check=True
    )
    libraries = re.findall(r"\(NEEDED\).*\[(.*)\]", needed.stdout)
    assert "libtorch_cpu.so" in libraries
    assert [name for name in libraries if "cu" in name and name != "libtorch_cpu.so"] == []
    symbols = [
        name
        for name in undefined
        if re.match(r"(__)?cu(da)?[A-Z]|aoti_torch_get_current_cuda", name)
    ]
    assert symbols == []


def shims_newer_than_target(include: Path) -> tuple[set[str], set[str]]:
    """Return the C shim names that torch's headers show to our target, and those they hide."""
    shown, hidden = set(), set()
    for header in include.rglob("*.h"):
        text = header.read_text(errors="replace")
        if not {"TORCH_FEATURE_VERSION", "AOTI_TORCH_EXPORT"} & set(re.findall(r"\w+", text)):
            continue
        guards: list[bool] = []
        for line in text.splitlines():
            if directive := re.match(r"\s*#\s*(ifdef|ifndef|if|elif|else|endif)\b(.*)", line):
                kind, condition = directive.groups()
                needs = re.search(
                    r"TORCH_FEATURE_VERSION\s*>=\s*TORCH_VERSION_(\d+)_(\d+)", condition
                )
                if kind.startswith("if"):
                    guards.append(bool(needs) and tuple(map(int, needs.groups())) > TARGET)
                elif kind == "endif":
                    guards.pop()
                elif kind == "else":
                    guards[-1] = False
            else:
                names = re.findall(r"\b((?:aoti_)?torch_\w+)\s*\(", line)
                (hidden if any(guards) else shown).update(names)
    return shown, hidden - shown


def test_no_shim_is_newer_than_the_target(undefined):
    include = Path(torch.__file__).parent / "include/torch/csrc"
    shown, hidden = shims_newer_than_target(include)
    # The parser understood the headers: an old name, one of 2.10, and names of 2.11.
    assert {"aoti_torch_get_data_ptr", "torch_library_impl"} <= shown
    if tuple(map(int, torch.__version__.split(".")[:2])) > TARGET:
        assert len(hidden) > 3
    used = {symbol for symbol in undefined if re.match(r"(aoti_)?torch_", symbol)}
    assert used & hidden == set()
    assert used - shown == set()


def test_only_what_python_calls_by_name_is_exported(undefined):
    listing = subprocess.run(
        ["nm", "--dynamic", "--defined-only", "--format=posix", str(LIBRARY)],
        capture_output=True,
        text=True,
        check=True,
    )
    exported = {line.split()[0] for line in listing.stdout.splitlines()}
    assert exported == {"microspec_cuda_architectures", "microspec_instruction_set"}
