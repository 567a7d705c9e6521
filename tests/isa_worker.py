"""Run by test_head_isa.py, once per instruction set: every kernel against float64, all element
values, and rows that end where memory does. Prints how many checks it made."""

import ctypes
import itertools
import mmap

import torch
from compare import assert_bitwise, assert_close, assert_top_k, ids_by_row, logits_in, tolerance
from generators import FLOATS, QUANTISED, HeadCase, head_case, row_indexed
from torch import Tensor

from microspec_kernels import sparse_head, sparse_logits

# Below, at and above the widths of vectors (4 to 32 elements) and of cache lines (16 to 64).
DIMS = (1, 3, 4, 7, 8, 9, 15, 16, 17, 31, 33, 40, 63, 64, 65, 129, 200)
BATCHES = (1, 2, 5, 6, 7, 13, 60)


def against_float64() -> int:
    checks = 0
    for seed, (dtype, dim, m) in enumerate(itertools.product(FLOATS, DIMS, BATCHES)):
        # The row type goes round with the seed; 13 active rows leave remainders of every panel.
        rows = (dtype, *QUANTISED)[(seed + seed // 7) % 3]
        case = head_case(
            seed, m=m, dim=dim, dtype=dtype, rows=rows, active=13, bias=dtype, gap=seed % 2
        )
        exact, allowed = logits_in(case, torch.float64), tolerance(case)
        what = f"{dtype} x {rows}, M {m}, D {dim}: "
        z = sparse_logits(*case.tensors(), **case.options())
        assert_close(z, exact, allowed, what + "logits")
        top = sparse_head(*case.tensors(), 6, **case.options())
        assert_top_k(top[:2], exact, ids_by_row(case), allowed)
        checks += 1
    return checks


def every_value(rows: torch.dtype, hidden: torch.dtype) -> int:
    """Each bit pattern of an element type comes out as the number it means.

    Numbers below the smallest normal float may come out as zero: bf16 instructions flush them.
    """
    bits = torch.arange(2 ** (8 * torch.empty(0, dtype=rows).element_size()))
    as_bits = {1: torch.uint8, 2: torch.int16}[torch.empty(0, dtype=rows).element_size()]
    values = bits.to(as_bits).view(rows)
    scale = torch.ones(len(bits)) if rows in QUANTISED else None
    ids = torch.arange(len(bits), dtype=torch.int32)
    # Once as a lone element, where the loop's tail loads it; once among 64, where its body does.
    tail = HeadCase(torch.ones(1, 1, dtype=hidden), values[:, None], ids, weight_scale=scale)
    wide = torch.zeros(len(bits), 64, dtype=as_bits)
    wide[ids.long(), ids.long() % 64] = values.view(as_bits)
    body = HeadCase(torch.ones(2, 64, dtype=hidden), wide.view(rows), ids, weight_scale=scale)
    for case in (tail, body):
        z = sparse_logits(*case.tensors(), weight_scale=scale)
        assert_close(z, values.float().expand_as(z), 2.0**-126, f"{rows} values")
    return len(bits)


def at_the_end_of_memory(dtype: torch.dtype, rows: torch.dtype, m: int, dim: int) -> int:
    """hidden, weight and ids end flush with a page, and the page behind is not to be touched."""
    case = head_case(5, m=m, dim=dim, vocab_size=13, capacity=13, active=13, dtype=dtype, rows=rows)
    guarded = case.changed(
        hidden=flush(case.hidden),
        weight=flush(case.weight),
        active_ids=flush(case.active_ids),
        weight_scale=None if case.weight_scale is None else flush(case.weight_scale),
    )
    for got, want in zip(
        sparse_head(*guarded.tensors(), 13, **guarded.options()),
        sparse_head(*case.tensors(), 13, **case.options()),
        strict=True,
    ):
        assert_bitwise(got, want)
    return 1


KEEP: list[object] = []  # mappings live as long as their tensors, which is as long as the process


def flush(tensor: Tensor) -> Tensor:
    """A copy whose last byte is the last before an inaccessible page."""
    page, size = mmap.PAGESIZE, tensor.numel() * tensor.element_size()
    pages = (size + page - 1) // page
    memory = mmap.mmap(-1, (pages + 1) * page)
    KEEP.append(memory)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    no_access = 0
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    assert protect(ctypes.c_void_p(start + pages * page), page, no_access) == 0
    count = tensor.numel()
    copy = torch.frombuffer(memory, dtype=tensor.dtype, count=count, offset=pages * page - size)
    copy = copy.view(tensor.shape)
    row_indexed(copy).copy_(row_indexed(tensor))
    return copy


def main() -> None:
    checks = against_float64()
    for rows in QUANTISED:
        checks += every_value(rows, torch.float32) + every_value(rows, torch.bfloat16)
    for rows in (torch.float16, torch.bfloat16):
        checks += every_value(rows, rows)
    for dtype, m, dim in itertools.product(FLOATS, (1, 2, 7), (1, 9, 33, 64, 129)):
        for rows in (dtype, *QUANTISED):
            checks += at_the_end_of_memory(dtype, rows, m, dim)
    print(checks)


if __name__ == "__main__":
    main()
