# SPDX-License-Identifier: Apache-2.0
"""Check every kernel of one instruction set; test_head_isa.py starts this once for each.

The checks compare with float64, cover all element values, and read rows that end where accessible
memory ends. Prints the number of checks.
"""

import ctypes
import itertools
import mmap

import torch
from compare import assert_bitwise, assert_close, assert_top_k, ids_by_row, logits_in, tolerance
from generators import E2M1, FLOATS, INT4, QUANTISED, HeadCase, head_case, row_indexed
from torch import Tensor

from microspec_kernels import sparse_head, sparse_logits

# Below, at and above the widths of vectors (4 to 32 elements) and of cache lines (16 to 64).
DIMS = (1, 3, 4, 7, 8, 9, 15, 16, 17, 31, 33, 40, 63, 64, 65, 129, 200)
BATCHES = (1, 2, 5, 6, 7, 13, 60)


def against_float64() -> int:
    checks = 0
    for seed, (dtype, dim, m) in enumerate(itertools.product(FLOATS, DIMS, BATCHES)):
        checks += four_bit_against_float64(seed, dtype, INT4, 8 * dim, m)
        checks += four_bit_against_float64(seed, dtype, E2M1, 8 * dim, m)
        # The row type alternates with the seed; 13 active rows leave a remainder in every panel.
        weight_dtype = (dtype, *QUANTISED)[(seed + seed // 7) % 3]
        case = head_case(
            seed,
            m=m,
            dim=dim,
            dtype=dtype,
            weight_dtype=weight_dtype,
            active=13,
            bias=dtype,
            gap=seed % 2,
        )
        exact, allowed = logits_in(case, torch.float64), tolerance(case)
        what = f"{dtype} x {weight_dtype}, M {m}, D {dim}: "
        z = sparse_logits(*case.tensors(), **case.options())
        assert_close(z, exact, allowed, what + "logits")
        top = sparse_head(*case.tensors(), 6, **case.options())
        assert_top_k(top[:2], exact, ids_by_row(case), allowed)
        checks += 1
    return checks


def four_bit_against_float64(
    seed: int, dtype: torch.dtype, weight_dtype: torch.dtype, dim: int, m: int
) -> int:
    case = head_case(
        seed,
        m=m,
        dim=dim,
        capacity=45,
        dtype=dtype,
        weight_dtype=weight_dtype,
        active=31 + seed % 3,
        gap=seed % 2,
    )
    z = sparse_logits(*case.tensors(), **case.options())
    exact = logits_in(case, torch.float64)
    assert_close(z, exact, tolerance(case), f"{dtype} x {weight_dtype}, M {m}, D {dim}: ")
    return 1


def every_value(weight_dtype: torch.dtype, hidden: torch.dtype) -> int:
    """Check that each bit pattern of an element type decodes to its number.

    Numbers below the smallest normal float may decode to zero, because bf16 instructions flush
    them.
    """
    bits = torch.arange(2 ** (8 * torch.empty(0, dtype=weight_dtype).element_size()))
    as_bits = {1: torch.uint8, 2: torch.int16}[torch.empty(0, dtype=weight_dtype).element_size()]
    values = bits.to(as_bits).view(weight_dtype)
    scale = torch.ones(len(bits)) if weight_dtype in QUANTISED else None
    ids = torch.arange(len(bits), dtype=torch.int32)
    # Once as a single element, which the loop's tail loads; once among 64, which its body loads.
    tail = HeadCase(torch.ones(1, 1, dtype=hidden), values[:, None], ids, weight_scale=scale)
    wide = torch.zeros(len(bits), 64, dtype=as_bits)
    wide[ids.long(), ids.long() % 64] = values.view(as_bits)
    body = HeadCase(
        torch.ones(2, 64, dtype=hidden), wide.view(weight_dtype), ids, weight_scale=scale
    )
    for case in (tail, body):
        z = sparse_logits(*case.tensors(), weight_scale=scale)
        assert_close(z, values.float().expand_as(z), 2.0**-126, f"{weight_dtype} values")
    return len(bits)


def at_the_end_of_memory(dtype: torch.dtype, weight_dtype: torch.dtype, m: int, dim: int) -> int:
    """Place hidden, weight and ids at the end of a page, before an inaccessible one."""
    case = head_case(
        5,
        m=m,
        dim=dim,
        vocab_size=13,
        capacity=13,
        active=13,
        dtype=dtype,
        weight_dtype=weight_dtype,
    )
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


KEEP: list[object] = []  # tensors, and with them their mappings, live until the process ends


def flush(tensor: Tensor) -> Tensor:
    """Copy a tensor so that its last byte is the last before an inaccessible page."""
    page, size = mmap.PAGESIZE, tensor.numel() * tensor.element_size()
    pages = (size + page - 1) // page
    memory = mmap.mmap(-1, (pages + 1) * page)
    KEEP.append(memory)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    no_access = 0
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    assert protect(ctypes.c_void_p(start + pages * page), page, no_access) == 0
    copy = torch.frombuffer(memory, dtype=torch.uint8, count=size, offset=pages * page - size)
    copy = copy.view(tensor.dtype).view(tensor.shape)
    row_indexed(copy).copy_(row_indexed(tensor))
    return copy


def main() -> None:
    checks = against_float64()
    for weight_dtype in QUANTISED:
        checks += every_value(weight_dtype, torch.float32) + every_value(
            weight_dtype, torch.bfloat16
        )
    for weight_dtype in (torch.float16, torch.bfloat16):
        checks += every_value(weight_dtype, weight_dtype)
    for dtype, m, dim in itertools.product(FLOATS, (1, 2, 7), (1, 9, 33, 64, 129)):
        for weight_dtype in (dtype, *QUANTISED, INT4, E2M1):
            checks += at_the_end_of_memory(dtype, weight_dtype, m, dim)
    print(checks)


if __name__ == "__main__":
    main()
