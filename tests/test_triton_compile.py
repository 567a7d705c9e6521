# SPDX-License-Identifier: Apache-2.0
"""Every Triton kernel, compiled for its devices, without one of them.

Registers, spills and shared memory come from the binaries; only a GPU can confirm their effect on
speed. Each case is one that the launchers use.
"""

import importlib
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

# Some hundred compilations; a second run finds them in build/triton-cache.
pytestmark = pytest.mark.slow
triton = pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("interpreted kernels cannot be compiled", allow_module_level=True)

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

TARGETS = {
    "sm80": GPUTarget("cuda", 80, 32),
    "sm90": GPUTarget("cuda", 90, 32),
    "sm100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
# Bytes of shared memory per block. Two programs of the projection must fit on a multiprocessor.
SHARED_LIMIT = {"sm80": 163 * 1024, "sm90": 227 * 1024, "sm100": 227 * 1024, "gfx942": 64 * 1024}
# Only the largest K and BLOCK of the other kernels are compiled; smaller ones need less.
SCALARS = {"logit_scale": "fp32", "softcap": "fp32", "unit": "fp32", "inverse_unit": "fp32"}
POINTERS = {
    "partial": "*fp32", "active_ids": "*i32", "group_ids": "*i64", "weight_scale": "*fp32",
    "bias": "*bf16", "logits": "*fp32", "token_ids": "*i64", "logsumexp": "*fp32",
    "slab_ids": "*i32", "slab_scale": "*fp32", "slot_stamps": "*i64", "token_slots": "*i32",
    "clock": "*i64", "tokens": "*i64", "token_groups": "*i64", "newcomers": "*i32",
    "text_counts": "*i32", "total_counts": "*i32", "seen": "*i32", "token_ranks": "*i32",
    "marks": "*i32", "token_requests": "*i64", "request_lists": "*i64", "group_lists": "*i64",
    "log_probs": "*fp32", "temperatures": "*fp32", "seeds": "*i64", "positions": "*i64",
    "row_tokens": "*i64", "logit_rows": "*i64", "pool_tokens": "*i64", "pool_parents": "*i64",
    "pool_costs": "*fp32", "frontier": "*i64", "next_frontier": "*i64", "next_tokens": "*i64",
    "next_rows": "*i64", "roots": "*i64", "parents": "*i64", "depths": "*i64",
    "ancestor_mask": "*i1", "paths": "*i64", "path_tokens": "*i64", "node_tokens": "*i64",
    "counts": "*i64", "leaves": "*i64",
}  # fmt: skip


def variants(target: str, largest: Any, less: Any) -> tuple[Any, ...]:
    """Return a kernel's largest variant, and for one target the one that needs less, too.

    Triton checks types and shapes before it knows the target, so one target shows that they fit.
    """
    return (largest, less) if target == "sm90" else (largest,)


def module(name: str) -> Any:
    """Import a module by name, because the package's attributes of these names are the ops."""
    return importlib.import_module(f"microspec_kernels.triton_kernels.{name}")


def compiled(kernel: Any, target: str, types: dict[str, str], **constants: Any) -> Any:
    """Compile with 16-byte pointers and strides, as for a model.

    Upper-case names are the kernel's constants.
    """
    while not isinstance(kernel, triton.runtime.jit.JITFunction):
        kernel = kernel.fn  # unwrap the autotuner
    values = {name: value for name, value in constants.items() if name.isupper()}
    options = {name: value for name, value in constants.items() if not name.isupper()}
    types_of = POINTERS | SCALARS | types
    signature = {name: types_of.get(name, "i32") for name in kernel.arg_names}
    signature |= dict.fromkeys(values, "constexpr")
    even = [name for name, kind in signature.items() if kind[0] == "*" or "stride" in name] + [
        name for name in signature if name == "dim"
    ]
    attributes = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in even}
    source = ASTSource(fn=kernel, signature=signature, constexprs=values, attrs=attributes)
    try:
        return triton.compile(source, target=TARGETS[target], options=options)
    except Exception as error:
        if "ROCm linker" in str(error):
            pytest.skip("this Triton has no linker for ROCm of its own")
        raise


def resources(binary: Any, target: str, folder: Path) -> dict[str, int]:
    if target == "gfx942":
        names = {"registers": "vgpr_count", "spilled": "vgpr_spill_count"}
        names["local"] = "private_segment_fixed_size"
        text = binary.asm["amdgcn"]
        return {
            key: int(re.search(rf"\.{name}:\s+(\d+)", text)[1]) for key, name in names.items()
        } | {"shared": binary.metadata.shared}
    file = folder / "kernel.cubin"
    file.write_bytes(binary.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    done = subprocess.run([tool, "-res-usage", file], capture_output=True, text=True, check=True)
    # STACK counts spills: no kernel here has a local array.
    registers, stack, local = re.search(
        r"REG:(\d+) STACK:(\d+) .* LOCAL:(\d+)", done.stdout
    ).groups()
    found = {"registers": registers, "spilled": stack, "local": local}
    return {key: int(value) for key, value in found.items()} | {"shared": binary.metadata.shared}


def check(binary: Any, target: str, folder: Path, *, warps: int, blocks: int = 1) -> dict[str, int]:
    """Check that the binary spills nothing, and that ``blocks`` of it fit on a multiprocessor."""
    used = resources(binary, target, folder)
    assert used["spilled"] == used["local"] == 0, used
    # CUDA allocates registers in eights per thread, 64 Ki per multiprocessor; gfx942 has 512 of 64
    # lanes per SIMD, and 4 SIMDs.
    if target == "gfx942":
        assert used["registers"] <= 512 * 4 // (warps * blocks), used
    else:
        assert blocks * warps * 32 * -(-used["registers"] // 8) * 8 <= 65536, used
    assert used["shared"] <= SHARED_LIMIT[target], used
    assert blocks * (used["shared"] + 1024) <= SHARED_LIMIT[target] + 1024, used
    return used


# Row types and their branches: e4m3 decoded in software, or converted by the hardware.
ROWS = {
    "bf16": {},
    "i8": {},
    "u8": {"E4M3": True},
    "u8 converted": {"E4M3": True, "CONVERTS": True},
    "u8 int4": {"INT4": True},
    "u8 e2m1": {"E2M1": True},
}
PLAIN = {
    "INT4": False, "INT4_GROUP": 32, "E2M1": False, "E2M1_GROUP": 16, "E4M3": False,
    "CONVERTS": False,
}  # fmt: skip
PROJECTIONS = [
    ("bf16", "bf16", 16), ("bf16", "bf16", 64), ("bf16", "i8", 16), ("bf16", "i8", 64),
    ("bf16", "u8", 16), ("bf16", "u8", 64), ("bf16", "u8 converted", 16),
    ("bf16", "u8 converted", 64), ("fp16", "u8", 16), ("fp32", "fp32", 16), ("fp32", "i8", 16),
    ("fp32", "u8", 16), ("bf16", "u8 int4", 16), ("bf16", "u8 int4", 64), ("fp32", "u8 int4", 16),
    ("bf16", "u8 e2m1", 16), ("fp16", "u8 e2m1", 64), ("fp32", "u8 e2m1", 16),
]  # fmt: skip


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("hidden", "rows", "block_m"), PROJECTIONS)
def test_projection(target: str, hidden: str, rows: str, block_m: int, tmp_path: Path) -> None:
    if rows == "u8 converted" and target not in ("sm90", "sm100"):
        pytest.skip("no conversion in hardware")
    projection = module("projection")
    hip = target == "gfx942"
    # The configurations cover every combination of packed and grouped, which change one line each.
    turn = PROJECTIONS.index((hidden, rows, block_m))
    for config in projection.configs(hidden == "fp32", block_m, hip):
        binary = compiled(
            projection.project_kernel,
            target,
            {
                "hidden": f"*{hidden}",
                "weight": f"*{rows.split()[0]}",
                "group_scale": "*u8" if rows == "u8 e2m1" else "*bf16",
            },
            PACKED=turn % 2 == 0,
            GROUPED=turn % 4 < 2 or block_m == 64,
            ONE_GROUP=turn % 4 == 1,
            **PLAIN | ROWS.get(rows, {}),
            STEP=projection.SPLIT_STEP,
            E2M1_STEP=projection.E2M1_STEP,
            BLOCK_SLOTS=projection.BLOCK_SLOTS,
            BLOCK_SEARCH=projection.BLOCK_SEARCH,
            BLOCK_M=block_m,
            **config.kwargs,
            num_warps=config.num_warps,
            num_stages=config.num_stages,
            **({"maxnreg": config.maxnreg} if config.maxnreg else {}),
        )
        check(binary, target, tmp_path, warps=config.num_warps)
        if rows in ("u8 int4", "u8 e2m1"):  # steps of 32 columns are too short for other claims
            if target in ("sm80", "sm90") and hidden != "fp32":
                assert "mma" in binary.asm["ptx"], "not on tensor cores"
            continue
        if target == "sm90" and hidden != "fp32":
            assert "wgmma" in binary.asm["ptx"], "not on Hopper's tensor cores"
        if target == "sm80" and hidden != "fp32":
            assert "mma.sync" in binary.asm["ptx"], "not on tensor cores"
        if not hip:
            assert "cp.async" in binary.asm["ptx"], "rows are not fetched ahead"
            assert "tf32" not in binary.asm["ptx"]


FINISHING = {"PACKED": True, "SCALED": True, "BIASED": True, "CAPPED": True, "GROUPED": True}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("block", [1024, 4096])
def test_selection(target: str, block: int, tmp_path: Path) -> None:
    head = module("sparse_head")
    assert block <= head.BLOCK
    for finishing in variants(target, FINISHING, dict.fromkeys(FINISHING, False)):
        finishing = {**finishing, "ONE_GROUP": block == 1024 and finishing["GROUPED"]}
        warps = head.warps(block)
        binary = compiled(
            head.sparse_head_kernel, target, {}, **finishing, TOP=head.TOP, BLOCK=block,
            num_warps=warps, enable_fp_fusion=False,
        )  # fmt: skip
        check(binary, target, tmp_path, warps=warps)


@pytest.mark.parametrize("target", TARGETS)
def test_logits(target: str, tmp_path: Path) -> None:
    logits = module("sparse_logits")
    binary = compiled(
        logits.sparse_logits_kernel, target, {}, **FINISHING, BLOCK=logits.BLOCK,
        enable_fp_fusion=False,
    )  # fmt: skip
    check(binary, target, tmp_path, warps=4)


@pytest.mark.parametrize("target", TARGETS)
def test_sample(target: str, tmp_path: Path) -> None:
    sample = module("sparse_sample")
    warps = sample.warps(sample.BLOCK)
    for flag, logits in variants(target, (True, "*i16"), (False, "*fp32")):
        constants = {**dict.fromkeys(FINISHING, flag), "ONE_GROUP": False}
        constants |= {"MAPPED": flag, "NAMED": flag, "BF16": flag}
        types = {"token_logits": logits}
        binary = compiled(
            sample.sparse_sample_kernel, target, types, **constants, SPAN=sample.SPAN,
            BLOCK=sample.BLOCK, num_warps=warps, enable_fp_fusion=False,
        )  # fmt: skip
        check(binary, target, tmp_path, warps=warps)
        binary = compiled(
            sample.store_logits_kernel, target, types, **constants, BLOCK=sample.STORED,
            num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip
        check(binary, target, tmp_path, warps=4)


GATHERS = {
    "copy": ("i16", "i16", {"COPY_SCALE": False, "QUANTISE": False, "E4M3": False}),
    "copy with scales": ("u8", "u8", {"COPY_SCALE": True, "QUANTISE": False, "E4M3": True}),
    "int8": ("bf16", "i8", {"COPY_SCALE": False, "QUANTISE": True, "E4M3": False}),
    "e4m3": ("fp32", "u8", {"COPY_SCALE": False, "QUANTISE": True, "E4M3": True}),
    "int4": ("bf16", "u8", {"COPY_SCALE": False, "QUANTISE": True, "E4M3": False, "INT4": True}),
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", GATHERS)
def test_gather(target: str, kind: str, tmp_path: Path) -> None:
    gather = module("gather_rows")
    weight, slab, constants = GATHERS[kind]
    types = {"weight": f"*{weight}", "slab": f"*{slab}"}
    types |= {"slab_scale": "*i16"} if kind == "int4" else {}
    size = {"i16": 2, "bf16": 2, "fp32": 4, "u8": 1}[weight]
    for slots in variants(target, 64, 2):
        binary = compiled(
            gather.gather_rows_kernel, target, types, **{"INT4": False} | constants, INT4_GROUP=32,
            BLOCK_SLOTS=slots, BLOCK=gather.BLOCK_BYTES // size, SCALE_BLOCK=128,
            enable_fp_fusion=False,
        )  # fmt: skip
        check(binary, target, tmp_path, warps=4, blocks=4)
        if target != "gfx942" and kind != "int4":  # which loads even and odd columns
            assert re.search(r"ld\.global.*\.v4\.b32", binary.asm["ptx"]), "not 16 bytes a load"


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kernel", ["mark", "choose", "place"])
def test_vocab(target: str, kernel: str, tmp_path: Path) -> None:
    vocab = module("vocab_update")
    for ragged, tokens in ((True, "*i64"), (False, "*i32")):
        binary = compiled(
            getattr(vocab, f"{kernel}_kernel"), target, {"tokens": tokens, "token_groups": tokens},
            RAGGED=ragged, BLOCK=vocab.BLOCK, num_warps=8,
        )  # fmt: skip
        check(binary, target, tmp_path, warps=8)
        if target == "gfx942":  # its barriers do not wait for other waves' writes to memory
            assert "debug_barrier" not in Path(vocab.__file__).read_text()


@pytest.mark.parametrize("target", TARGETS)
def test_count(target: str, tmp_path: Path) -> None:
    count = module("vocab_count")
    for given, integers in variants(target, (True, "*i64"), (False, "*i32")):
        types = dict.fromkeys(("tokens", "token_requests", "request_lists"), integers)
        binary = compiled(
            count.count_kernel, target, types,
            RAGGED=given, LISTED=given, TOTALS=given, BLOCK=count.BLOCK, num_warps=4,
        )  # fmt: skip
        check(binary, target, tmp_path, warps=4, blocks=4)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("kernel", "warps"), [("select", 16), ("keep", 8), ("place", 8), ("stamp", 4)]
)
def test_refill(target: str, kernel: str, warps: int, tmp_path: Path) -> None:
    refill = module("vocab_refill")
    for flag, lists in ((True, "*i64"), (False, "*i32")):
        constants = {"TOTALS": flag, "RESET": flag, "BLOCK": refill.BLOCK}
        constants |= {"STAMPED": refill.STAMPED, "COMPARED": refill.COMPARED}
        function = getattr(refill, f"{kernel}_kernel")
        constants = {n: value for n, value in constants.items() if n in function.arg_names}
        binary = compiled(function, target, {"group_lists": lists}, **constants, num_warps=warps)
        check(binary, target, tmp_path, warps=warps)
        if target == "gfx942":  # its barriers do not wait for other waves' writes to memory
            assert "debug_barrier" not in Path(refill.__file__).read_text()


@pytest.mark.parametrize("target", TARGETS)
def test_tree(target: str, tmp_path: Path) -> None:
    grow, cut, accept = (module(f"tree_{name}") for name in ("grow", "cut", "accept"))
    compared = {"BLOCK": grow.BLOCK, "COMPARED": grow.COMPARED}
    marks, tokens = {"chosen": "*i8"}, {"chosen": "*i64"}
    kernels = [
        (grow.grow_kernel, {}, compared | {"ROOT": r}) for r in variants(target, False, True)
    ]
    kernels += [
        (cut.choose_kernel, marks, compared),
        (cut.nodes_kernel, marks, {"TILE": cut.TILE, "SWEPT": cut.SWEPT}),
        (accept.accept_kernel, tokens, {"BLOCK": accept.BLOCK}),
    ]
    for kernel, types, constants in kernels:
        check(compiled(kernel, target, types, **constants, num_warps=4), target, tmp_path, warps=4)
