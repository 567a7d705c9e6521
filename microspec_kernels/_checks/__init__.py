# SPDX-License-Identifier: Apache-2.0
"""Argument checks of every op, for the code in Python: fakes, reference and Triton.

The checks mirror ``csrc/binding/check.h`` and ``csrc/*/*_op.cpp``, including the messages; a test
compares the two. They read only shapes, dtypes, strides and devices, so they also work on fake
tensors. ``ids``, ``head_ids`` and ``disjoint`` are the exceptions: they read values or addresses.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NoReturn

import torch
from torch import Tensor

from ..tally import num_words, tally_words

MAX_TOP_K = 128
PINNED_STAMP = 2**63 - 1
EMPTY_STAMP = -1
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
QUANTISED = (torch.int8, torch.float8_e4m3fn)  # one fp32 scale a row
# Rows of 4 bits: int4, two columns a byte, the even one in the low half, and a bf16 scale for each
# INT4_GROUP columns.
INT4 = torch.uint8
INT4_GROUP = 32
# The layout of nvfp4: e2m1, also two columns a byte, and an e4m3 scale for each E2M1_GROUP columns.
E2M1 = torch.float4_e2m1fn_x2
E2M1_GROUP = 16
# For each dtype of 4-bit rows: the columns that share a scale, and its dtype.
FOUR_BIT = {INT4: (INT4_GROUP, torch.bfloat16), E2M1: (E2M1_GROUP, torch.float8_e4m3fn)}


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _extent(tensor: Tensor | None) -> tuple[int, int]:
    """Return the addresses of the first byte and of the byte after the last; (0, 0) if empty."""
    if tensor is None or tensor.numel() == 0:
        return 0, 0
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    last = sum((size - 1) * stride for size, stride in steps)
    begin = tensor.data_ptr()
    return begin, begin + (last + 1) * tensor.element_size()


class Checker:
    """Checks of one op on one device. Every error names the op and the argument.

    A wrong dtype raises TypeError, a wrong id IndexError, and anything else ValueError.
    """

    def __init__(self, op: str, device: torch.device) -> None:
        self.op = op
        self.device = device

    def fail(self, kind: type[Exception], argument: str, expected: str, got: object) -> NoReturn:
        raise kind(f"microspec::{self.op}: {argument}: expected {expected}, got {got}")

    def value(self, ok: bool, argument: str, expected: str, got: object) -> None:
        if not ok:
            self.fail(ValueError, argument, expected, got)

    def dtype(
        self, tensor: Tensor, argument: str, expected: Sequence[torch.dtype], text: str
    ) -> None:
        if tensor.dtype not in expected:
            self.fail(TypeError, argument, text, dtype_name(tensor.dtype))

    def int32(self, tensor: Tensor, argument: str) -> None:
        self.dtype(tensor, argument, [torch.int32], "int32")

    def int64(self, tensor: Tensor, argument: str) -> None:
        self.dtype(tensor, argument, [torch.int64], "int64")

    def integer(self, tensor: Tensor, argument: str) -> None:
        self.dtype(tensor, argument, [torch.int32, torch.int64], "int32 or int64")

    def floating(self, tensor: Tensor, argument: str) -> None:
        self.dtype(tensor, argument, FLOATS, "float32, float16 or bfloat16")

    def rows(self, tensor: Tensor, argument: str, reference: torch.dtype, *, e2m1: bool) -> None:
        """Require reference's dtype or a quantised one; e2m1 only where rows are not made of it."""
        quantised = [torch.float8_e4m3fn, torch.int8, INT4, *([E2M1] if e2m1 else [])]
        names = [dtype_name(dtype) for dtype in (reference, *quantised)]
        text = f"{', '.join(names[:-1])} or {names[-1]}"
        self.dtype(tensor, argument, [reference, *quantised], text)

    def group_dim(self, rows: torch.dtype, dim: int, argument: str) -> None:
        group, _ = FOUR_BIT[rows]
        expected = f"D a multiple of {group} for {dtype_name(rows)} rows"
        self.value(dim % group == 0, argument, expected, dim)

    def shape(self, tensor: Tensor, argument: str, expected: Sequence[int]) -> None:
        if tensor.dim() != len(expected) or any(
            got != want for got, want in zip(tensor.shape, expected, strict=True)
        ):
            self.fail(ValueError, argument, f"shape {list(expected)}", list(tensor.shape))

    def contiguous(self, tensor: Tensor, argument: str) -> None:
        if not tensor.is_contiguous():
            self.fail(
                ValueError, argument, "a contiguous tensor", f"strides {list(tensor.stride())}"
            )

    def on_device(self, tensor: Tensor, argument: str) -> None:
        if tensor.device != self.device:
            self.fail(ValueError, argument, f"a tensor on {self.device}", f"one on {tensor.device}")

    def unit_inner_stride(self, tensor: Tensor, argument: str) -> None:
        if tensor.size(-1) > 1 and tensor.stride(-1) != 1:
            got = f"stride {tensor.stride(-1)}"
            self.fail(ValueError, argument, "stride 1 in the last dimension", got)

    def disjoint(
        self, written: Mapping[str, Tensor | None], read: Mapping[str, Tensor | None]
    ) -> None:
        """Check that written tensors share no memory with other arguments. Not for fake tensors."""
        extents = {name: _extent(tensor) for name, tensor in {**written, **read}.items()}
        checked: list[str] = []
        for name in written:
            begin, end = extents[name]
            for other in (*checked, *read):
                if begin < extents[other][1] and extents[other][0] < end:
                    self.fail(ValueError, name, "memory of its own", f"memory shared with {other}")
            checked.append(name)

    def row_scale(
        self, scale: Tensor | None, argument: str, rows: torch.dtype, shape: Sequence[int], dim: int
    ) -> None:
        """Check the scales of rows [*shape, dim]."""
        group, kind = FOUR_BIT.get(rows, (0, torch.float32))
        if rows not in (*QUANTISED, *FOUR_BIT):
            wanted = "None for rows that are not int8, float8_e4m3fn, uint8 or float4_e2m1fn_x2"
            self.value(scale is None, argument, wanted, "a tensor")
        elif scale is None:
            each = (
                f"{group} columns for {dtype_name(rows)}"
                if group
                else "row for int8 or float8_e4m3fn"
            )
            self.fail(ValueError, argument, f"a scale per {each} rows", "None")
        else:
            self.dtype(scale, argument, [kind], dtype_name(kind))
            self.shape(scale, argument, (*shape, dim // group) if group else shape)
            self.contiguous(scale, argument)
            self.on_device(scale, argument)

    def ids(self, ids: Tensor, argument: str, vocab_size: int, noun: str, where: str) -> None:
        """Check that every value is in [0, vocab_size) or -1. Not for fake tensors."""
        wide = ids.long()  # int32 cannot hold a vocab_size of 2^31
        bad = ((wide < -1) | (wide >= vocab_size)).flatten().nonzero()
        if len(bad):
            position = int(bad[0])
            got = f"{int(ids.flatten()[position])} at {where} {position}"
            self.fail(IndexError, argument, f"{noun} in [0, {vocab_size}) or -1", got)


def groups_and_capacity(check: Checker, active_ids: Tensor) -> tuple[int, int]:
    fits = active_ids.dim() == 1 or (active_ids.dim() == 2 and active_ids.size(0) > 0)
    check.value(fits, "active_ids", "shape [K] or [G, K], G >= 1", list(active_ids.shape))
    num_groups = active_ids.size(0) if active_ids.dim() == 2 else 1
    return num_groups, active_ids.size(-1)


def head(
    op: str,
    hidden: Tensor,
    weight: Tensor,
    active_ids: Tensor,
    packed: bool,
    group_ids: Tensor | None,
    weight_scale: Tensor | None,
    bias: Tensor | None,
    logit_scale: float,
    softcap: float,
    k: int | None = None,
) -> None:
    """Check the arguments of sparse_head (with ``k``) or sparse_logits, except the ids' values."""
    check = Checker(op, hidden.device)
    if k is not None:
        check.value(1 <= k <= MAX_TOP_K, "k", f"1 <= k <= {MAX_TOP_K}", k)
    check.value(hidden.dim() == 2, "hidden", "shape [M, D]", list(hidden.shape))
    num_groups, capacity = groups_and_capacity(check, active_ids)
    check.int32(active_ids, "active_ids")
    rows, dim = hidden.shape
    check.floating(hidden, "hidden")
    check.rows(weight, "weight", hidden.dtype, e2m1=True)
    columns = dim
    if weight.dtype in FOUR_BIT:
        check.group_dim(weight.dtype, dim, "weight")
        columns = dim // 2
    if not packed:
        fits = weight.dim() == 2 and weight.size(1) == columns
        check.value(fits, "weight", f"shape [V, {columns}]", list(weight.shape))
        scale_shape: tuple[int, ...] = (weight.size(0),)
    else:
        scale_shape = (capacity,) if active_ids.dim() == 1 else (num_groups, capacity)
        check.shape(weight, "weight", (*scale_shape, columns))
    check.row_scale(weight_scale, "weight_scale", weight.dtype, scale_shape, dim)
    single = num_groups == 1 or group_ids is not None or rows == 0
    check.value(single, "group_ids", f"a group per row, as G = {num_groups}", "None")
    if group_ids is not None:
        check.integer(group_ids, "group_ids")
        fits = group_ids.dim() == 1 and (group_ids.size(0) == rows or group_ids.size(0) == 1)
        check.value(fits, "group_ids", f"shape [{rows}] or [1]", list(group_ids.shape))
        check.contiguous(group_ids, "group_ids")
        check.on_device(group_ids, "group_ids")
    if bias is not None:
        allowed = dict.fromkeys([hidden.dtype, torch.float32])
        check.dtype(bias, "bias", [*allowed], " or ".join(map(dtype_name, allowed)))
        check.value(bias.dim() == 1, "bias", "shape [V]", list(bias.shape))
        if not packed:
            check.shape(bias, "bias", (weight.size(0),))
        check.contiguous(bias, "bias")
        check.on_device(bias, "bias")
    check.value(math.isfinite(logit_scale), "logit_scale", "a finite number", f"{logit_scale:g}")
    fits = softcap >= 0 and math.isfinite(softcap)
    check.value(fits, "softcap", "a finite number >= 0", f"{softcap:g}")
    check.unit_inner_stride(hidden, "hidden")
    check.unit_inner_stride(weight, "weight")
    check.contiguous(active_ids, "active_ids")
    check.on_device(weight, "weight")
    check.on_device(active_ids, "active_ids")


def head_ids(
    op: str,
    hidden: Tensor,
    weight: Tensor,
    active_ids: Tensor,
    packed: bool,
    group_ids: Tensor | None,
    bias: Tensor | None,
) -> None:
    """Check the values of active_ids and group_ids for sparse_head and sparse_logits."""
    check = Checker(op, hidden.device)
    vocab_size = weight.size(0) if not packed else bias.size(0) if bias is not None else 2**31
    check.ids(active_ids, "active_ids", vocab_size, "ids", "flat position")
    if group_ids is not None:
        num_groups = active_ids.size(0) if active_ids.dim() == 2 else 1
        check.ids(group_ids, "group_ids", num_groups, "groups", "position")


def sample(
    hidden: Tensor,
    weight: Tensor,
    active_ids: Tensor,
    temperatures: Tensor,
    seeds: Tensor,
    positions: Tensor,
    packed: bool,
    group_ids: Tensor | None,
    weight_scale: Tensor | None,
    bias: Tensor | None,
    logit_scale: float,
    softcap: float,
    row_tokens: Tensor | None,
    token_logits: Tensor | None,
    logit_rows: Tensor | None,
) -> tuple[Checker, int]:
    """Check the arguments of sparse_sample, except the ids' values. Return the bound of the ids."""
    head(
        "sparse_sample", hidden, weight, active_ids, packed, group_ids, weight_scale, bias,
        logit_scale, softcap,
    )  # fmt: skip
    check, rows = Checker("sparse_sample", hidden.device), hidden.size(0)

    def vector(tensor: Tensor, argument: str, dtype: torch.dtype, size: int) -> None:
        check.dtype(tensor, argument, [dtype], dtype_name(dtype))
        check.shape(tensor, argument, (size,))
        check.contiguous(tensor, argument)
        check.on_device(tensor, argument)

    vector(temperatures, "temperatures", torch.float32, rows)
    vector(seeds, "seeds", torch.int64, rows)
    vector(positions, "positions", torch.int64, rows)
    vocab_size = weight.size(0) if not packed else bias.size(0) if bias is not None else None
    if row_tokens is not None:
        check.value(row_tokens.dim() == 1, "row_tokens", "shape [V]", list(row_tokens.shape))
        vocab_size = row_tokens.size(0) if vocab_size is None else vocab_size
        vector(row_tokens, "row_tokens", torch.int64, vocab_size)
    if token_logits is not None:
        name = "token_logits"
        check.floating(token_logits, name)
        check.value(token_logits.dim() == 2, name, "shape [R, V']", list(token_logits.shape))
        held, columns = token_logits.shape
        if row_tokens is None and vocab_size is None:
            vocab_size = columns  # a slab names its tokens freely, as long as they have a column
        fits = row_tokens is not None or columns >= (vocab_size or 0)
        check.value(fits, name, f"at least V = {vocab_size} columns", columns)
        fits = logit_rows is not None or held >= rows
        check.value(fits, name, f"at least M = {rows} rows, or logit_rows", held)
        check.unit_inner_stride(token_logits, name)
        stride = token_logits.stride(0)
        fits = held <= 1 or stride >= columns
        check.value(fits, name, "rows that do not overlap", f"stride {stride}")
        check.on_device(token_logits, name)
    if logit_rows is not None:
        fits = token_logits is not None
        check.value(fits, "logit_rows", "None without token_logits", "a tensor")
        _numbers(check, logit_rows, "logit_rows", rows)
    return check, 2**31 if vocab_size is None else vocab_size


def gather(
    slab: Tensor,
    slab_ids: Tensor,
    weight: Tensor,
    active_ids: Tensor,
    slab_scale: Tensor | None,
    weight_scale: Tensor | None,
) -> Checker:
    """Check the arguments of gather_rows_, except the ids' values."""
    check = Checker("gather_rows_", slab.device)
    num_groups, capacity = groups_and_capacity(check, active_ids)
    check.value(weight.dim() == 2, "weight", "shape [V, D]", list(weight.shape))
    check.int32(active_ids, "active_ids")
    check.int32(slab_ids, "slab_ids")
    ids_shape = (capacity,) if active_ids.dim() == 1 else (num_groups, capacity)
    check.shape(slab_ids, "slab_ids", ids_shape)
    if weight.dtype in (*QUANTISED, *FOUR_BIT):
        check.dtype(slab, "slab", [weight.dtype], dtype_name(weight.dtype))
    else:
        check.floating(weight, "weight")
    check.rows(slab, "slab", weight.dtype, e2m1=weight.dtype == E2M1)
    dim = weight.size(1) * (2 if weight.dtype in FOUR_BIT else 1)
    check.shape(slab, "slab", (*ids_shape, dim // 2 if slab.dtype in FOUR_BIT else dim))
    if slab.dtype in FOUR_BIT:
        check.group_dim(slab.dtype, dim, "weight")
    check.row_scale(weight_scale, "weight_scale", weight.dtype, (weight.size(0),), dim)
    check.row_scale(slab_scale, "slab_scale", slab.dtype, ids_shape, dim)
    check.unit_inner_stride(weight, "weight")
    # With a slab on a GPU, the weight may lie in pinned host memory. The compiled op checks that.
    if slab.device.type != "cuda" or weight.device.type != "cpu":
        check.on_device(weight, "weight")
    for tensor, name in ((slab, "slab"), (slab_ids, "slab_ids"), (active_ids, "active_ids")):
        check.contiguous(tensor, name)
        check.on_device(tensor, name)
    return check


def vocab_state(
    check: Checker, active_ids: Tensor, slot_stamps: Tensor, token_slots: Tensor, clock: Tensor
) -> tuple[int, int, int]:
    """Check a vocabulary's state. Return G, K and V."""
    num_groups, capacity = groups_and_capacity(check, active_ids)
    check.value(token_slots.dim() == 2, "token_slots", "shape [G, V]", list(token_slots.shape))
    vocab_size = token_slots.size(1)
    check.int32(active_ids, "active_ids")
    check.int64(slot_stamps, "slot_stamps")
    check.int32(token_slots, "token_slots")
    check.int64(clock, "clock")
    check.shape(slot_stamps, "slot_stamps", (num_groups, capacity))
    check.shape(token_slots, "token_slots", (num_groups, vocab_size))
    check.shape(clock, "clock", (num_groups,))
    state = {
        "active_ids": active_ids,
        "slot_stamps": slot_stamps,
        "token_slots": token_slots,
        "clock": clock,
    }
    for name, tensor in state.items():
        check.contiguous(tensor, name)
        check.on_device(tensor, name)
    return num_groups, capacity, vocab_size


def _tokens(
    check: Checker, tokens: Tensor, owners: str, rows: int, token_owners: Tensor | None
) -> None:
    """Check tokens [rows, N], or [N] with token_owners [N]; owners are "groups" or "requests"."""
    letter, argument = owners[0].upper(), f"token_{owners}"
    check.integer(tokens, "tokens")
    got = list(tokens.shape)
    if token_owners is not None or tokens.dim() == 1:
        check.value(tokens.dim() == 1, "tokens", f"shape [N] beside {argument}", got)
        expected = f"shape [{letter}, N], or [N] with {argument}, as {letter} > 1"
        check.value(token_owners is not None or rows == 1, "tokens", expected, got)
    else:
        fits = tokens.dim() == 2 and tokens.size(0) == rows
        check.value(fits, "tokens", f"shape [{rows}, N]", got)
    check.contiguous(tokens, "tokens")
    check.on_device(tokens, "tokens")
    if token_owners is not None:
        _numbers(check, token_owners, argument, tokens.size(-1))


def _numbers(check: Checker, numbers: Tensor, argument: str, count: int) -> None:
    """Check int32 or int64 [count]."""
    check.integer(numbers, argument)
    check.shape(numbers, argument, (count,))
    check.contiguous(numbers, argument)
    check.on_device(numbers, argument)


def vocab(
    active_ids: Tensor,
    slot_stamps: Tensor,
    token_slots: Tensor,
    clock: Tensor,
    tokens: Tensor,
    token_groups: Tensor | None,
) -> Checker:
    """Check the arguments of vocab_update_, except the tokens' values."""
    check = Checker("vocab_update_", active_ids.device)
    num_groups, _, _ = vocab_state(check, active_ids, slot_stamps, token_slots, clock)
    _tokens(check, tokens, "groups", num_groups, token_groups)
    return check


def _counts(check: Checker, text_counts: Tensor, total_counts: Tensor | None) -> None:
    """Check text_counts int32 [C, V] and total_counts int32 [V]."""
    fits = text_counts.dim() == 2 and text_counts.size(0) > 0
    check.value(fits, "text_counts", "shape [C, V], C >= 1", list(text_counts.shape))
    check.int32(text_counts, "text_counts")
    check.contiguous(text_counts, "text_counts")
    check.on_device(text_counts, "text_counts")
    if total_counts is not None:
        check.int32(total_counts, "total_counts")
        check.shape(total_counts, "total_counts", (text_counts.size(1),))
        check.contiguous(total_counts, "total_counts")
        check.on_device(total_counts, "total_counts")


def _requests(
    check: Checker, text_counts: Tensor, seen: Tensor, request_lists: Tensor | None
) -> None:
    """Check seen int32 [R, ceil(V / 32)], and request_lists [R] if there are several lists."""
    words = num_words(text_counts.size(1))
    fits = seen.dim() == 2 and seen.size(0) > 0 and seen.size(1) == words
    check.value(fits, "seen", f"shape [R, {words}], R >= 1", list(seen.shape))
    check.int32(seen, "seen")
    check.contiguous(seen, "seen")
    check.on_device(seen, "seen")
    given = request_lists is not None or text_counts.size(0) == 1
    check.value(given, "request_lists", "the list of each request, as C > 1", None)
    if request_lists is not None:
        _numbers(check, request_lists, "request_lists", seen.size(0))


def vocab_count(
    text_counts: Tensor,
    seen: Tensor,
    tokens: Tensor,
    token_requests: Tensor | None,
    request_lists: Tensor | None,
    total_counts: Tensor | None,
) -> Checker:
    """Check the arguments of vocab_count_."""
    check = Checker("vocab_count_", text_counts.device)
    _counts(check, text_counts, total_counts)
    _requests(check, text_counts, seen, request_lists)
    _tokens(check, tokens, "requests", seen.size(0), token_requests)
    return check


def _integers(check: Checker, tensor: Tensor, argument: str) -> None:
    """Check an int32 or int64 tensor of any shape."""
    check.integer(tensor, argument)
    check.contiguous(tensor, argument)
    check.on_device(tensor, argument)


def _step_tokens(
    check: Checker,
    tokens: Tensor,
    lengths: Tensor | None,
    candidates: Tensor | None,
    token_rows: Tensor | None,
) -> int:
    """Check the tokens of a step. Return the number of them and of the candidates."""
    _integers(check, tokens, "tokens")
    fits = tokens.dim() == 2 or (tokens.dim() == 1 and lengths is None)
    expected = "shape [N] or [B, n]" if lengths is None else "shape [B, n] beside lengths"
    check.value(fits, "tokens", expected, list(tokens.shape))
    if lengths is not None:
        _numbers(check, lengths, "lengths", tokens.size(0))
    if candidates is not None:
        _integers(check, candidates, "candidates")
    if token_rows is not None:
        check.int32(token_rows, "token_rows")
        fits = token_rows.dim() == 1 and token_rows.numel() > 0
        check.value(fits, "token_rows", "shape [T], T >= 1", list(token_rows.shape))
        check.contiguous(token_rows, "token_rows")
        check.on_device(token_rows, "token_rows")
    return tokens.numel() + (0 if candidates is None else candidates.numel())


def _tally(check: Checker, tally: Tensor, num_lists: int, vocab_size: int) -> int:
    """Check a tally's data. Return R."""
    check.int32(tally, "tally")
    check.contiguous(tally, "tally")
    check.on_device(tally, "tally")
    per_request, tables = tally_words(num_lists, vocab_size)
    num_requests = (tally.numel() - tables) // per_request
    fits = num_requests > 0 and num_requests * per_request + tables == tally.numel()
    expected = f"shape [{per_request} R + {tables}], R >= 1"
    check.value(tally.dim() == 1 and fits, "tally", expected, list(tally.shape))
    aligned = tally.storage_offset() % 2 == 0  # the verdicts are int64
    check.value(aligned, "tally", "data aligned to 8 bytes", "data aligned to 4")
    return num_requests


def vocab_observe(
    active_ids: Tensor,
    slot_stamps: Tensor,
    token_slots: Tensor,
    clock: Tensor,
    tokens: Tensor,
    lengths: Tensor | None,
    candidates: Tensor | None,
    token_rows: Tensor | None,
    token_groups: Tensor | None,
    token_requests: Tensor | None,
    tally: Tensor | None,
    num_lists: int,
) -> Checker:
    """Check the arguments of vocab_observe_, except the tokens' values."""
    check = Checker("vocab_observe_", active_ids.device)
    num_groups, _, vocab_size = vocab_state(check, active_ids, slot_stamps, token_slots, clock)
    count = _step_tokens(check, tokens, lengths, candidates, token_rows)
    expected = "the group of each token, as G > 1"
    check.value(token_groups is not None or num_groups == 1, "token_groups", expected, None)
    if token_groups is not None:
        _numbers(check, token_groups, "token_groups", count)
    given = tally is not None or token_requests is None
    check.value(given, "token_requests", "None without tally", "a tensor")
    if tally is None:
        check.value(num_lists == 0, "num_lists", "0 without tally", num_lists)
        return check
    check.value(num_lists >= 0, "num_lists", "at least 0", num_lists)
    num_requests = _tally(check, tally, num_lists, vocab_size)
    given = token_requests is not None or num_requests in (1, num_groups)
    expected = "the request of each token, as R is neither 1 nor G"
    check.value(given, "token_requests", expected, None)
    if token_requests is not None:
        _numbers(check, token_requests, "token_requests", count)
    return check


def vocab_refill(
    active_ids: Tensor,
    slot_stamps: Tensor,
    token_slots: Tensor,
    clock: Tensor,
    text_counts: Tensor,
    token_ranks: Tensor,
    group_lists: Tensor,
    total_counts: Tensor | None,
    pinned: int,
) -> Checker:
    """Check the arguments of vocab_refill_, except the lists' values."""
    check = Checker("vocab_refill_", active_ids.device)
    num_groups, capacity, vocab_size = vocab_state(
        check, active_ids, slot_stamps, token_slots, clock
    )
    _counts(check, text_counts, total_counts)
    check.shape(text_counts, "text_counts", (text_counts.size(0), vocab_size))
    check.int32(token_ranks, "token_ranks")
    check.shape(token_ranks, "token_ranks", (vocab_size,))
    check.contiguous(token_ranks, "token_ranks")
    check.on_device(token_ranks, "token_ranks")
    _numbers(check, group_lists, "group_lists", num_groups)
    check.value(0 <= pinned <= capacity, "pinned", f"0 to K = {capacity}", pinned)
    return check
