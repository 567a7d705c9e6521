# SPDX-License-Identifier: Apache-2.0
"""The compiled CUDA kernels, read rather than run: nvcc's output for each GPU."""

import re
from typing import Any

import pytest
import sass

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not sass.architectures() if sass.cuobjdump() else True,
        reason="the library was built without nvcc, or there is no cuobjdump",
    ),
]


def by_process(*architectures: str) -> list[Any]:
    """Return parameters for parametrize: one process reads a GPU's 66 MB, for all of its tests."""
    return [pytest.param(a, marks=pytest.mark.xdist_group(f"sass {a}")) for a in architectures]


# One of each generation; the others differ from one of these only in their limits.
GENERATIONS = ("sm_80", "sm_90a", "sm_100")
READ = by_process(*GENERATIONS)
ALL = ("sm_80", "sm_86", "sm_89", "sm_90a", "sm_100", "sm_120")
WAITING = ("sm_90a", "sm_100", "sm_120")  # can start a kernel before the one ahead is over
STATIC_SHARED_LIMIT = 48 * 1024


def test_architectures() -> None:
    assert sass.architectures() == set(ALL)
    assert sass.ptx_architectures() == {"sm_120"}


@pytest.mark.parametrize("arch", ALL)
def test_everything_is_in_registers(arch: str) -> None:
    resources = sass.resources(arch)
    assert len(resources) > 50, "cuobjdump's report was not understood"
    in_memory = {k: r for k, r in resources.items() if r.stack or r.local}
    assert not in_memory
    large = {k: r for k, r in resources.items() if r.shared > STATIC_SHARED_LIMIT}
    assert not large
    # A launch fails with more registers than a block may have: 1024 threads of 64, 512 of 128, 256
    # of 255.
    limits = {"project_simt": 128, "select": 128, "refill_kernel": 64, "tree_": 64}
    for name, used in resources.items():
        limit = next((n for start, n in limits.items() if name.startswith(start)), 255)
        assert used.registers <= limit, name


@pytest.mark.parametrize("arch", READ)
def test_no_local_memory(arch: str) -> None:
    kernels = sass.kernels(arch)
    assert len(kernels) > 50
    for name, kernel in kernels.items():
        used = {i.split()[0] for i in kernel.instructions}
        assert not {o for o in used if o.startswith(("LDL", "STL"))}, name


@pytest.mark.parametrize("arch", READ)
@pytest.mark.parametrize("hidden", ["bf16_t", "f16_t"])
@pytest.mark.parametrize("row", ["same", "f8e4m3_t", "signed char"])
@pytest.mark.parametrize("tiles", [2, 4, 8])
def test_matrix_loop(arch: str, hidden: str, row: str, tiles: int) -> None:
    """Each tile of slots multiplies every part of a lane's 128 registers of hidden once."""
    rows = hidden if row == "same" else row
    kernel = sass.kernels(arch)[f"project_mma_kernel<{hidden}, {rows}, {tiles}>"]
    loop = sass.innermost(kernel, "HMMA")
    matrix = [i for i in loop if i.startswith("HMMA.16816.F32")]
    assert len(matrix) == 64, "128 registers of hidden are two an instruction"
    assert all(("BF16" in i) == (hidden == "bf16_t") for i in matrix)
    # Two 16-byte loads feed each block of 4 or 8 multiplications. Loads of words would conflict:
    # each lane's are 16 bytes apart. sm_80 cannot convert fp8, so nothing is loaded. Eight more add
    # the warps' sums, in half of the warps before the multiplications and in the others after.
    blocks = 64 // (tiles * (2 if row == "same" else 4))
    wide = [i for i in loop if i.startswith("LDS.128") or i.startswith("LDS.U.128")]
    assert len(wide) == (0 if (arch, row) == ("sm_80", "f8e4m3_t") else 2 * blocks) + 16
    first, last = loop.index(matrix[0]), len(loop) - 1 - loop[::-1].index(matrix[-1])
    assert sum(i in wide for i in loop[:first]) >= 8 and sum(i in wide for i in loop[last:]) == 8
    # The ids of the next runs are loaded ahead of the multiplications, and none after them.
    assert any(i.startswith("LDG") for i in loop[:first])
    assert not any(i.startswith("LDG.") for i in loop[last:])
    assert arch == "sm_80" or not [i for i in loop if i.startswith("LDS ")]
    if arch == "sm_80":
        copies = [i for i in loop if i.startswith("LDGSTS")]
        assert copies and all(".128" in i for i in copies)
    else:
        assert any(i.startswith("UBLKCP") for i in loop)
        assert any(i.startswith("SYNCS.PHASECHK") for i in loop)
        assert not any(i.startswith("LDGSTS") for i in loop)
    assert not any(i.startswith("LDG.") and ".128" in i for i in loop), "not through registers"
    if row == "f8e4m3_t" and arch != "sm_80":
        assert any("E4M3" in i for i in loop), "converted by the hardware"


# sm_80 cannot convert fp8, so fp8 rows are an error there.
@pytest.mark.parametrize(
    ("arch", "row"),
    [
        pytest.param(arch, row, marks=pytest.mark.xdist_group(f"sass {arch}"))
        for arch in GENERATIONS
        for row in ("same", "f8e4m3_t", "signed char")
        if (arch, row) != ("sm_80", "f8e4m3_t")
    ],
)
@pytest.mark.parametrize("hidden", ["bf16_t", "f16_t", "float"])
@pytest.mark.parametrize("rows", [1, 4])
def test_multiply_add_loop(arch: str, hidden: str, row: str, rows: int) -> None:
    weights = hidden if row == "same" else row
    kernel = sass.kernels(arch)[f"project_simt_kernel<{hidden}, {weights}, {rows}, true>"]
    loop = sass.innermost(kernel, "FFMA", "LDG")
    loads = [i for i in loop if i.startswith("LDG")]
    ahead = 8 if rows == 1 else 4
    assert len(loads) == ahead * (2 if row == "same" else 1)
    assert all(".128" in i for i in loads)
    assert not any(i.startswith("BAR") for i in loop)


def between_branches(kernel: sass.Kernel) -> list[list[str]]:
    parts: list[list[str]] = [[]]
    for instruction in kernel.instructions:
        parts[-1].append(instruction)
        if instruction.startswith(("BRA", "EXIT", "BAR", "CALL")):
            parts.append([])
    return parts


@pytest.mark.parametrize("arch", READ)
@pytest.mark.parametrize("keys", [2, 4, 6, 8])
def test_selection(arch: str, keys: int) -> None:
    """Ids and sums of a thread's slots share one trip to memory; a step of the search is short."""
    kernel = sass.kernels(arch)[f"select_kernel<FewKeys<{keys}> >"]
    batches = [sum(i.startswith("LDG") for i in part) for part in between_branches(kernel)]
    assert max(batches) == 2 * keys, "an id and a sum for each slot"
    # Two to three instructions a key, and those of a reduction in each warp and one over the warps.
    step = sass.innermost(kernel, "REDUX.SUM", "BAR")
    assert len(step) <= 3 * keys + 22


@pytest.mark.parametrize("arch", READ)
@pytest.mark.parametrize("hidden", ["bf16_t", "f16_t", "float"])
@pytest.mark.parametrize(("rows", "ahead"), [(1, 6), (2, 4)])
def test_int4_loop(arch: str, hidden: str, rows: int, ahead: int) -> None:
    """A load of 16 bytes is a group of 32 columns with one scale; no code needs a conversion."""
    kernel = sass.kernels(arch)[f"project_simt_kernel<{hidden}, i4x2_t, {rows}, true>"]
    # Code that the compiler moved behind the end of a kernel jumps back, like a smaller loop.
    products = 32 * rows * ahead
    whole = [x for x in kernel.loops() if sum(i.startswith("FFMA") for i in x) >= products]
    loop = min(whole, key=len)
    loads = [i for i in loop if i.startswith("LDG")]
    assert len([i for i in loads if ".128" in i]) == ahead
    assert len([i for i in loads if ".U16" in i]) == ahead
    assert len(loads) == 2 * ahead
    assert not any(i.startswith(("I2F", "F2F", "BAR")) for i in loop)


@pytest.mark.parametrize("arch", READ)
@pytest.mark.parametrize("hidden", ["bf16_t", "f16_t", "float"])
@pytest.mark.parametrize(("rows", "ahead"), [(1, 6), (2, 4)])
def test_e2m1_loop(arch: str, hidden: str, rows: int, ahead: int) -> None:
    """A load of 16 bytes is two groups of 16 columns; two codes become floats at once."""
    kernel = sass.kernels(arch)[f"project_simt_kernel<{hidden}, f4e2m1x2_t, {rows}, true>"]
    products = 32 * rows * ahead
    whole = [x for x in kernel.loops() if sum(i.startswith("FFMA") for i in x) >= products]
    loop = min(whole, key=len)
    loads = [i for i in loop if i.startswith("LDG")]
    assert len([i for i in loads if ".128" in i]) == ahead
    assert len([i for i in loads if ".U8" in i]) == 2 * ahead
    assert len(loads) == 3 * ahead
    assert not any(i.startswith(("I2F", "F2F", "BAR")) for i in loop)


@pytest.mark.parametrize("arch", READ)
@pytest.mark.parametrize("hidden", ["bf16_t", "f16_t"])
@pytest.mark.parametrize("tiles", [2, 4, 8])
def test_int4_matrix_loop(arch: str, hidden: str, tiles: int) -> None:
    """64 columns of 16 slots take 16 pairs, and a sum of 32 columns is scaled once."""
    kernel = sass.kernels(arch)[f"project_mma_kernel<{hidden}, i4x2_t, {tiles}>"]
    loop = sass.innermost(kernel, "HMMA")
    matrix = [i for i in loop if i.startswith("HMMA.16816.F32")]
    assert len(matrix) == 64, "128 registers of hidden are two an instruction"
    assert all(("BF16" in i) == (hidden == "bf16_t") for i in matrix)
    # The first of a group's two multiplications begins at zero, without clearing registers.
    assert sum(i.rstrip().endswith(", RZ") for i in matrix) == 32
    chunks = 16 // tiles
    assert sum(i.startswith("FFMA") for i in loop) == 32 * 4, "four a group and tile of hidden"
    # One logical instruction and one subtraction for two codes; no code needs a conversion.
    assert sum(i.startswith("HFMA2") for i in loop) == 16 * chunks
    assert sum(i.startswith("LOP3") and "0xf000f" in i for i in loop) == 16 * chunks
    assert not any(i.startswith(("I2F", "F2F", "LDL", "STL")) for i in loop)
    # Scales come by asynchronous copies of 4 bytes, on every GPU.
    copies = [i for i in loop if i.startswith("LDGSTS")]
    assert any(".128" not in i for i in copies)
    assert any(i.startswith("UBLKCP") for i in loop) == (arch != "sm_80")


@pytest.mark.parametrize("arch", READ)
@pytest.mark.parametrize("hidden", ["bf16_t", "f16_t"])
@pytest.mark.parametrize("tiles", [2, 4, 8])
def test_e2m1_matrix_loop(arch: str, hidden: str, tiles: int) -> None:
    """Codes become products with their scales, of which the multiplications are summed at once."""
    kernel = sass.kernels(arch)[f"project_mma_kernel<{hidden}, f4e2m1x2_t, {tiles}>"]
    loop = sass.innermost(kernel, "HMMA")
    matrix = [i for i in loop if i.startswith("HMMA.16816.F32")]
    assert len(matrix) == 64, "128 registers of hidden are two an instruction"
    assert not any(i.startswith("FFMA") for i in loop), "no scaling of sums"
    # Of 64 columns of 16 slots: a product for two codes, and one or two for two pairs of scales.
    chunks = 16 // tiles
    scales = 2 * (2 if hidden == "bf16_t" else 1)
    assert sum(i.startswith(("HFMA2", "HMUL2")) for i in loop) == (16 + scales) * chunks
    assert not any(i.startswith(("I2F", "F2F", "LDL", "STL")) for i in loop)


@pytest.mark.parametrize("arch", READ)
def test_copy_loop(arch: str) -> None:
    kernel = sass.kernels(arch)["copy_rows_kernel<uint4, void>"]
    loop = sass.innermost(kernel, "LDG", "STG")
    assert all(".128" in i for i in loop if i.startswith(("LDG", "STG")))
    # Four loads of a thread are in flight before the first store.
    assert [i[:3] for i in loop if i.startswith(("LDG", "STG"))][:4] == ["LDG"] * 4


def accesses(kernel: sass.Kernel) -> list[str]:
    """Return the opcodes of a kernel's accesses to global memory, in order."""
    return [i.split()[0] for i in kernel.instructions if i.startswith(("LDG", "STG"))]


@pytest.mark.parametrize("arch", READ)
@pytest.mark.parametrize("scale", ["bf16_t", "f8e4m3_t"])
def test_scales_of_4_bit_rows_are_in_flight_with_their_row(arch: str, scale: str) -> None:
    order = accesses(sass.kernels(arch)[f"copy_rows_kernel<uint4, {scale}>"])
    row = next(i for i, text in enumerate(order) if ".128" in text)
    before = [text for text in order[:row] if text.endswith((".U16", ".U8"))]
    assert len(before) == (1 if scale == "bf16_t" else 2), "loads of scales before the row's"
    assert not any(text.startswith("STG") for text in order[: row + 4])


@pytest.mark.parametrize("arch", READ)
@pytest.mark.parametrize("source", ["bf16_t", "f16_t", "float"])
def test_a_row_to_4_bits_waits_for_memory_once(arch: str, source: str) -> None:
    """A thread's loads of 32 columns, or of 16 fp32 ones, precede its first store."""
    order = accesses(sass.kernels(arch)[f"quantise_int4_kernel<{source}, true>"])
    row = next(i for i, text in enumerate(order) if ".128" in text)
    assert all(text.startswith("LDG") and ".128" in text for text in order[row : row + 4])
    assert sum(".128" in text for text in order) == 4


def before_the_wait(kernel: sass.Kernel) -> list[str]:
    waits = [i for i, text in enumerate(kernel.instructions) if text.startswith("ACQBULK")]
    return kernel.instructions[: waits[0]] if waits else kernel.instructions


@pytest.mark.parametrize("arch", by_process(*ALL))
def test_nothing_is_read_before_the_wait(arch: str) -> None:
    """Every kernel waits for earlier ones, on hardware that can start it before they end.

    Until then it computes, reads its arguments (LDC) and clears shared memory at most.
    """
    for name, kernel in sass.kernels(arch).items():
        waits = any(i.startswith("ACQBULK") for i in kernel.instructions)
        assert waits == (arch in WAITING), name
        if waits:
            memory = [i for i in before_the_wait(kernel) if sass.touches_memory(i)]
            assert not memory, name
            # No branch either: the code up to the wait runs as it stands.
            assert not [i for i in before_the_wait(kernel) if i.startswith(("BRA", "EXIT"))], name


@pytest.mark.parametrize("arch", by_process(*ALL))
def test_no_load_counts_as_read_only(arch: str) -> None:
    """A kernel before may still write what this one reads: no load takes the path for constants."""
    for name, kernel in sass.kernels(arch).items():
        loads = [i for i in kernel.instructions if i.startswith(("LD.", "LDG", "LDGSTS"))]
        assert not [i for i in loads if ".CONSTANT" in i], name


def test_nothing_is_read_before_the_wait_in_ptx() -> None:
    """The same in the PTX, of which a driver makes the code for later GPUs."""
    functions = sass.dump("--dump-ptx").split(".entry ")[1:]
    assert len(functions) > 50
    names = sass.readable(function.split("(", 1)[0].strip() for function in functions)
    for name, function in zip(names, functions, strict=True):
        before, wait, _ = function.partition("griddepcontrol.wait")
        assert wait, name
        assert not re.search(r"\b(ld|st|atom|red|cp)\.(?!param)", before), name
        assert not re.search(r"\bbra\b", before), name
        assert not re.search(r"\bld\.global\.nc\b", function), name
