# SPDX-License-Identifier: Apache-2.0
"""A table of wrong calls to the ops and the errors they must raise.

A row changes some arguments of a good call. Every backend raises the same message. So do the fakes,
unless the error depends on values (``values=True``).
"""

# The table has one wrong call per line.
# ruff: noqa: E501
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import bad_tree_calls as tree
import torch
from generators import gather_case, head_case, spread, vocab_state, with_value
from torch import Tensor

from microspec_kernels import Tally
from microspec_kernels._checks import MAX_TOP_K

Arguments = dict[str, Any]


@dataclass(frozen=True)
class BadCall:
    op: str
    name: str
    good: Callable[[], Arguments]
    change: Callable[[Arguments], Arguments]
    error: type[Exception]
    argument: str
    expected: str
    got: str
    values: bool = False

    def arguments(self) -> Arguments:
        good = self.good()
        return {**good, **self.change(good)}

    @property
    def message(self) -> str:
        return f"microspec::{self.op}: {self.argument}: expected {self.expected}, got {self.got}"

    def __str__(self) -> str:
        return f"{self.op}-{self.name}"


def head_call(**options: Any) -> Arguments:
    case = head_case(0, m=3, dim=8, vocab_size=50, capacity=6, active=6, **options)
    hidden, weight, active_ids = case.tensors()
    return {"hidden": hidden, "weight": weight, "active_ids": active_ids, **case.options()}


def grouped() -> Arguments:
    return head_call(num_groups=2)


def packed() -> Arguments:
    return head_call(num_groups=2, packed=True)


def packed_flat() -> Arguments:
    return head_call(packed=True)


def int8() -> Arguments:
    return head_call(weight_dtype=torch.int8)


def packed_int8() -> Arguments:
    return head_call(num_groups=2, packed=True, weight_dtype=torch.int8)


def packed_flat_int8() -> Arguments:
    return head_call(packed=True, weight_dtype=torch.int8)


def int4() -> Arguments:
    return head_call(weight_dtype=torch.uint8)


def packed_int4() -> Arguments:
    return head_call(num_groups=2, packed=True, weight_dtype=torch.uint8)


def e2m1() -> Arguments:
    return head_call(weight_dtype=torch.float4_e2m1fn_x2)


def packed_e2m1() -> Arguments:
    return head_call(num_groups=2, packed=True, weight_dtype=torch.float4_e2m1fn_x2)


def gather_e2m1() -> Arguments:
    return gather_call(dtype=torch.float4_e2m1fn_x2)


def gather_to_int4() -> Arguments:
    return gather_call(slab_dtype=torch.uint8)


def gather_from_int4() -> Arguments:
    return gather_call(dtype=torch.uint8)


def gather_call(**options: Any) -> Arguments:
    return gather_case(0, dim=8, capacity=6, **options).arguments()


def gather_groups() -> Arguments:
    return gather_call(num_groups=2)


def gather_to_int8() -> Arguments:
    return gather_call(slab_dtype=torch.int8)


def gather_from_int8() -> Arguments:
    return gather_call(dtype=torch.int8)


def gather_all() -> Arguments:
    """Return a call with as many slots as tokens."""
    return gather_call(dtype=torch.int8, vocab_size=6)


def gather_groups_to_fp8() -> Arguments:
    return gather_call(num_groups=2, slab_dtype=torch.float8_e4m3fn)


def vocab_call(num_groups: int = 1) -> Arguments:
    state = vars(vocab_state(50, 6, num_groups=num_groups, pinned=(7,)))
    return {**state, "tokens": torch.arange(4).repeat(num_groups, 1), "token_groups": None}


def vocab_groups() -> Arguments:
    return vocab_call(2)


def ragged() -> Arguments:
    groups = torch.tensor([0, 1, -1, 1])
    return {**vocab_call(2), "tokens": torch.arange(4), "token_groups": groups}


def count_tables(num_lists: int, num_requests: int) -> Arguments:
    return {
        "text_counts": zeros(num_lists, 50, dtype=I32), "seen": zeros(num_requests, 2, dtype=I32),
        "request_lists": zeros(num_requests, dtype=I64), "total_counts": zeros(50, dtype=I32),
    }  # fmt: skip


def count_call(num_lists: int = 1, num_requests: int = 1) -> Arguments:
    tokens = torch.arange(4).repeat(num_requests, 1)
    return {**count_tables(num_lists, num_requests), "tokens": tokens, "token_requests": None}


def count_requests() -> Arguments:
    return count_call(2, 3)


def count_ragged() -> Arguments:
    requests = torch.tensor([0, 2, -1, 1])
    return {**count_requests(), "tokens": torch.arange(4), "token_requests": requests}


def observe_call(num_groups: int = 1, num_lists: int = 1, num_requests: int = 1) -> Arguments:
    """Return a call with two rows of tokens, candidates and a map of tokens."""
    tally = Tally(50, num_lists=num_lists, num_requests=num_requests)
    count = 5 if num_groups > 1 else None
    return {
        **vars(vocab_state(50, 6, num_groups=num_groups, pinned=(7,))),
        "tokens": torch.tensor([[3, 20], [59, 99]]), "lengths": torch.tensor([2, 1]),
        "candidates": torch.tensor([6]), "token_rows": torch.arange(60, dtype=I32) - 10,
        "token_groups": None if count is None else torch.tensor([0, 1, 1, -1, 0]) % num_groups,
        "token_requests": None, "tally": tally.data, "num_lists": num_lists,
    }  # fmt: skip


def observe_plain() -> Arguments:
    """Return a call of ids as they lie, which counts for one request."""
    call = {**observe_call(), "tokens": torch.arange(4)}
    return {**call, **dict.fromkeys(("lengths", "candidates", "token_rows"))}


def observe_groups() -> Arguments:
    """Return a call whose requests are the groups."""
    return observe_call(2, 2, 2)


def observe_requests() -> Arguments:
    """Return a call of two groups whose tokens are those of three requests in two lists."""
    return {**observe_call(2, 2, 3), "token_requests": torch.tensor([0, 2, -1, 1, 3])}


def judge_call() -> Arguments:
    """Return a call that counts nothing."""
    return observe_call(2, 0, 2)


def update_call() -> Arguments:
    """Return a call that neither judges nor counts."""
    return {**observe_groups(), "tally": None, "num_lists": 0}


def refill_call(num_groups: int = 1) -> Arguments:
    return {
        **vars(vocab_state(50, 6, num_groups=num_groups, pinned=(7,))),
        "text_counts": torch.arange(100, dtype=I32).view(2, 50),
        "token_ranks": torch.arange(50, dtype=I32), "group_lists": zeros(num_groups, dtype=I64),
        "total_counts": zeros(50, dtype=I32), "pinned": 3, "reset": True,
    }  # fmt: skip


def refill_groups() -> Arguments:
    return refill_call(2)


def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


F16, F64, I8, FP8 = torch.float16, torch.float64, torch.int8, torch.float8_e4m3fn
BF16, U8, E2M1 = torch.bfloat16, torch.uint8, torch.float4_e2m1fn_x2
I16, I32, I64 = torch.int16, torch.int32, torch.int64
NO_SCALE = "None for rows that are not int8, float8_e4m3fn, uint8 or float4_e2m1fn_x2"
A_SCALE = "a scale per row for int8 or float8_e4m3fn rows"
GROUP_SCALE = "a scale per 32 columns for uint8 rows"
E2M1_SCALE = "a scale per 16 columns for float4_e2m1fn_x2 rows"
ROWS = "float32, float8_e4m3fn, int8, uint8 or float4_e2m1fn_x2"
MADE = "float32, float8_e4m3fn, int8 or uint8"
FLOAT = "float32, float16 or bfloat16"
INNER = "stride 1 in the last dimension"
OWN = "memory of its own"
FLAT = "a contiguous tensor"

Row = tuple[str, Callable[[], Arguments], Callable[[Arguments], Arguments], type, str, str, str]


def _head_rows() -> list[Row]:
    V, T = ValueError, TypeError
    return [
        ("hidden 0-d", head_call, lambda a: {"hidden": zeros()}, V, "hidden", "shape [M, D]", "[]"),
        ("ids 0-d", head_call, lambda a: {"active_ids": zeros(dtype=I32)}, V, "active_ids", "shape [K] or [G, K], G >= 1", "[]"),
        ("no group", head_call, lambda a: {"active_ids": zeros(0, 6, dtype=I32)}, V, "active_ids", "shape [K] or [G, K], G >= 1", "[0, 6]"),
        ("ids 3-d", head_call, lambda a: {"active_ids": zeros(1, 1, 6, dtype=I32)}, V, "active_ids", "shape [K] or [G, K], G >= 1", "[1, 1, 6]"),
        ("ids int64", head_call, lambda a: {"active_ids": a["active_ids"].long()}, T, "active_ids", "int32", "int64"),
        ("hidden float64", head_call, lambda a: {"hidden": zeros(3, 8, dtype=F64)}, T, "hidden", FLOAT, "float64"),
        ("hidden int8", head_call, lambda a: {"hidden": zeros(3, 8, dtype=I8)}, T, "hidden", FLOAT, "int8"),
        ("hidden fp8", head_call, lambda a: {"hidden": zeros(3, 8).to(FP8)}, T, "hidden", FLOAT, "float8_e4m3fn"),
        ("weight of another float", head_call, lambda a: {"weight": a["weight"].half()}, T, "weight", ROWS, "float16"),
        ("weight e5m2", head_call, lambda a: {"weight": a["weight"].to(torch.float8_e5m2)}, T, "weight", ROWS, "float8_e5m2"),
        ("weight int16", head_call, lambda a: {"weight": zeros(50, 8, dtype=I16)}, T, "weight", ROWS, "int16"),
        ("int4 of part of a group", head_call, lambda a: {"weight": zeros(50, 4, dtype=U8)}, V, "weight", "D a multiple of 32 for uint8 rows", "8"),
        ("int4 of another D", int4, lambda a: {"weight": zeros(50, 32, dtype=U8)}, V, "weight", "shape [V, 16]", "[50, 32]"),
        ("int4 slab of another D", packed_int4, lambda a: {"weight": zeros(2, 6, 32, dtype=U8)}, V, "weight", "shape [2, 6, 16]", "[2, 6, 32]"),
        ("int4 without scale", int4, lambda a: {"weight_scale": None}, V, "weight_scale", GROUP_SCALE, "None"),
        ("int4 scale float32", int4, lambda a: {"weight_scale": zeros(50, 1)}, T, "weight_scale", "bfloat16", "float32"),
        ("int4 scale per row", int4, lambda a: {"weight_scale": zeros(50, dtype=BF16)}, V, "weight_scale", "shape [50, 1]", "[50]"),
        ("int4 scale of another group", int4, lambda a: {"weight_scale": zeros(50, 2, dtype=BF16)}, V, "weight_scale", "shape [50, 1]", "[50, 2]"),
        ("int4 scale of V, packed", packed_int4, lambda a: {"weight_scale": zeros(50, 1, dtype=BF16)}, V, "weight_scale", "shape [2, 6, 1]", "[50, 1]"),
        ("e2m1 of part of a group", head_call, lambda a: {"weight": zeros(50, 4, dtype=E2M1)}, V, "weight", "D a multiple of 16 for float4_e2m1fn_x2 rows", "8"),
        ("e2m1 of another D", e2m1, lambda a: {"weight": zeros(50, 16, dtype=E2M1)}, V, "weight", "shape [V, 8]", "[50, 16]"),
        ("e2m1 slab of another D", packed_e2m1, lambda a: {"weight": zeros(2, 6, 16, dtype=E2M1)}, V, "weight", "shape [2, 6, 8]", "[2, 6, 16]"),
        ("e2m1 without scale", e2m1, lambda a: {"weight_scale": None}, V, "weight_scale", E2M1_SCALE, "None"),
        ("e2m1 scale bfloat16", e2m1, lambda a: {"weight_scale": zeros(50, 1, dtype=BF16)}, T, "weight_scale", "float8_e4m3fn", "bfloat16"),
        ("e2m1 scale of bytes", e2m1, lambda a: {"weight_scale": zeros(50, 1, dtype=U8)}, T, "weight_scale", "float8_e4m3fn", "uint8"),
        ("e2m1 bytes as int4", e2m1, lambda a: {"weight": a["weight"].view(U8)}, V, "weight", "D a multiple of 32 for uint8 rows", "16"),
        ("e2m1 scale of another group", e2m1, lambda a: {"weight_scale": zeros(50, 2).to(FP8)}, V, "weight_scale", "shape [50, 1]", "[50, 2]"),
        ("e2m1 scale padded as kernels take it", e2m1, lambda a: {"weight_scale": zeros(128, 4).to(FP8)}, V, "weight_scale", "shape [50, 1]", "[128, 4]"),
        ("hidden e2m1", head_call, lambda a: {"hidden": zeros(3, 4, dtype=E2M1)}, T, "hidden", FLOAT, "float4_e2m1fn_x2"),
        ("bias e2m1", head_call, lambda a: {"bias": zeros(25, dtype=E2M1)}, T, "bias", "float32", "float4_e2m1fn_x2"),
        ("int4 scale strided", int4, lambda a: {"weight_scale": spread(a["weight_scale"])}, V, "weight_scale", FLAT, "strides [2, 2]"),
        ("weight 1-d", head_call, lambda a: {"weight": zeros(8)}, V, "weight", "shape [V, 8]", "[8]"),
        ("weight 3-d, indexed", packed, lambda a: {"packed": False}, V, "weight", "shape [V, 8]", "[2, 6, 8]"),
        ("weight of another D", head_call, lambda a: {"weight": zeros(50, 7)}, V, "weight", "shape [V, 8]", "[50, 7]"),
        ("slab of another K", packed_flat, lambda a: {"weight": zeros(7, 8)}, V, "weight", "shape [6, 8]", "[7, 8]"),
        ("slab of another G", packed, lambda a: {"weight": zeros(3, 6, 8)}, V, "weight", "shape [2, 6, 8]", "[3, 6, 8]"),
        ("slab 2-d for groups", packed, lambda a: {"weight": zeros(12, 8)}, V, "weight", "shape [2, 6, 8]", "[12, 8]"),
        ("scale for floats", head_call, lambda a: {"weight_scale": zeros(50)}, V, "weight_scale", NO_SCALE, "a tensor"),
        ("no scale", int8, lambda a: {"weight_scale": None}, V, "weight_scale", A_SCALE, "None"),
        ("scale float16", int8, lambda a: {"weight_scale": zeros(50, dtype=F16)}, T, "weight_scale", "float32", "float16"),
        ("scale of another V", int8, lambda a: {"weight_scale": zeros(49)}, V, "weight_scale", "shape [50]", "[49]"),
        ("scale of V, packed", packed_int8, lambda a: {"weight_scale": zeros(50)}, V, "weight_scale", "shape [2, 6]", "[50]"),
        ("scale of V, packed flat", packed_flat_int8, lambda a: {"weight_scale": zeros(50)}, V, "weight_scale", "shape [6]", "[50]"),
        ("scale strided", int8, lambda a: {"weight_scale": spread(a["weight_scale"])}, V, "weight_scale", FLAT, "strides [2]"),
        ("no groups", grouped, lambda a: {"group_ids": None}, V, "group_ids", "a group per row, as G = 2", "None"),
        ("groups float", grouped, lambda a: {"group_ids": zeros(3)}, T, "group_ids", "int32 or int64", "float32"),
        ("groups int16", grouped, lambda a: {"group_ids": zeros(3, dtype=I16)}, T, "group_ids", "int32 or int64", "int16"),
        ("groups of another M", grouped, lambda a: {"group_ids": zeros(4, dtype=I64)}, V, "group_ids", "shape [3] or [1]", "[4]"),
        ("groups 2-d", grouped, lambda a: {"group_ids": zeros(1, 1, dtype=I64)}, V, "group_ids", "shape [3] or [1]", "[1, 1]"),
        ("groups strided", grouped, lambda a: {"group_ids": spread(a["group_ids"])}, V, "group_ids", FLAT, "strides [2]"),
        ("bias float64", head_call, lambda a: {"bias": zeros(50, dtype=F64)}, T, "bias", "float32", "float64"),
        ("bias of another float", lambda: head_call(dtype=F16), lambda a: {"bias": zeros(50, dtype=torch.bfloat16)}, T, "bias", "float16 or float32", "bfloat16"),
        ("bias 2-d", head_call, lambda a: {"bias": zeros(50, 1)}, V, "bias", "shape [V]", "[50, 1]"),
        ("bias of another V", head_call, lambda a: {"bias": zeros(49)}, V, "bias", "shape [50]", "[49]"),
        ("bias strided", head_call, lambda a: {"bias": spread(zeros(50))}, V, "bias", FLAT, "strides [2]"),
        ("logit scale infinite", head_call, lambda a: {"logit_scale": -float("inf")}, V, "logit_scale", "a finite number", "-inf"),
        ("logit scale NaN", head_call, lambda a: {"logit_scale": float("nan")}, V, "logit_scale", "a finite number", "nan"),
        ("softcap negative", head_call, lambda a: {"softcap": -0.5}, V, "softcap", "a finite number >= 0", "-0.5"),
        ("softcap infinite", head_call, lambda a: {"softcap": float("inf")}, V, "softcap", "a finite number >= 0", "inf"),
        ("softcap NaN", head_call, lambda a: {"softcap": float("nan")}, V, "softcap", "a finite number >= 0", "nan"),
        ("hidden spread", head_call, lambda a: {"hidden": spread(a["hidden"])}, V, "hidden", INNER, "stride 2"),
        ("weight transposed", head_call, lambda a: {"weight": zeros(8, 50).T}, V, "weight", INNER, "stride 50"),
        ("ids strided", head_call, lambda a: {"active_ids": spread(a["active_ids"])}, V, "active_ids", FLAT, "strides [2]"),
    ]  # fmt: skip


def _head_value_rows() -> list[Row]:
    ids, groups = "ids in [0, 50) or -1", "groups in [0, 2) or -1"
    bad = with_value
    return [
        ("id V", head_call, lambda a: {"active_ids": bad(a["active_ids"], 4, 50)}, IndexError, "active_ids", ids, "50 at flat position 4"),
        ("id -2", grouped, lambda a: {"active_ids": bad(a["active_ids"], 11, -2)}, IndexError, "active_ids", ids, "-2 at flat position 11"),
        ("two bad ids", head_call, lambda a: {"active_ids": bad(bad(a["active_ids"], 5, 77), 2, 2**31 - 1)}, IndexError, "active_ids", ids, "2147483647 at flat position 2"),
        ("id -2, packed", packed, lambda a: {"active_ids": bad(a["active_ids"], 3, -2)}, IndexError, "active_ids", "ids in [0, 2147483648) or -1", "-2 at flat position 3"),
        ("id beyond the bias, packed", packed_flat, lambda a: {"active_ids": bad(a["active_ids"], 3, 50), "bias": zeros(50)}, IndexError, "active_ids", ids, "50 at flat position 3"),
        ("group G", grouped, lambda a: {"group_ids": bad(a["group_ids"], 1, 2)}, IndexError, "group_ids", groups, "2 at position 1"),
        ("group -2, int32", grouped, lambda a: {"group_ids": bad(a["group_ids"], 2, -2).int()}, IndexError, "group_ids", groups, "-2 at position 2"),
        ("group beyond 2^33", grouped, lambda a: {"group_ids": bad(a["group_ids"], 1, 2**33 + 1)}, IndexError, "group_ids", groups, "8589934593 at position 1"),
        ("one group G", grouped, lambda a: {"group_ids": torch.tensor([2])}, IndexError, "group_ids", groups, "2 at position 0"),
    ]  # fmt: skip


def _k_rows() -> list[Row]:
    return [
        (
            f"k {k}",
            head_call,
            lambda a, k=k: {"k": k},
            ValueError,
            "k",
            f"1 <= k <= {MAX_TOP_K}",
            str(k),
        )
        for k in (0, -1, MAX_TOP_K + 1, 2**33 + 1, -(2**63))
    ]


def _gather_rows() -> list[Row]:
    V, T = ValueError, TypeError
    g = gather_call
    return [
        ("no group", g, lambda a: {"active_ids": zeros(0, 6, dtype=I32)}, V, "active_ids", "shape [K] or [G, K], G >= 1", "[0, 6]"),
        ("ids 3-d", g, lambda a: {"active_ids": zeros(1, 1, 6, dtype=I32)}, V, "active_ids", "shape [K] or [G, K], G >= 1", "[1, 1, 6]"),
        ("weight 3-d", g, lambda a: {"weight": zeros(1, 50, 8)}, V, "weight", "shape [V, D]", "[1, 50, 8]"),
        ("ids int64", g, lambda a: {"active_ids": a["active_ids"].long()}, T, "active_ids", "int32", "int64"),
        ("slab ids int64", g, lambda a: {"slab_ids": a["slab_ids"].long()}, T, "slab_ids", "int32", "int64"),
        ("slab ids of another K", g, lambda a: {"slab_ids": zeros(5, dtype=I32)}, V, "slab_ids", "shape [6]", "[5]"),
        ("slab ids of another G", gather_groups, lambda a: {"slab_ids": zeros(3, 6, dtype=I32)}, V, "slab_ids", "shape [2, 6]", "[3, 6]"),
        ("slab of another D", g, lambda a: {"slab": zeros(6, 9)}, V, "slab", "shape [6, 8]", "[6, 9]"),
        ("slab 2-d for groups", gather_groups, lambda a: {"slab": zeros(12, 8)}, V, "slab", "shape [2, 6, 8]", "[12, 8]"),
        ("weight float64", g, lambda a: {"weight": zeros(50, 8, dtype=F64)}, T, "weight", FLOAT, "float64"),
        ("slab of another float", g, lambda a: {"slab": zeros(6, 8, dtype=F16)}, T, "slab", MADE, "float16"),
        ("float slab of int8", gather_from_int8, lambda a: {"slab": zeros(6, 8)}, T, "slab", "int8", "float32"),
        ("fp8 slab of int8", gather_from_int8, lambda a: {"slab": zeros(6, 8).to(FP8)}, T, "slab", "int8", "float8_e4m3fn"),
        ("no weight scale", gather_from_int8, lambda a: {"weight_scale": None}, V, "weight_scale", A_SCALE, "None"),
        ("weight scale for floats", g, lambda a: {"weight_scale": zeros(50)}, V, "weight_scale", NO_SCALE, "a tensor"),
        ("weight scale of another V", gather_from_int8, lambda a: {"weight_scale": zeros(51)}, V, "weight_scale", "shape [50]", "[51]"),
        ("no slab scale", gather_to_int8, lambda a: {"slab_scale": None}, V, "slab_scale", A_SCALE, "None"),
        ("slab scale for floats", g, lambda a: {"slab_scale": zeros(6)}, V, "slab_scale", NO_SCALE, "a tensor"),
        ("slab scale float64", gather_to_int8, lambda a: {"slab_scale": zeros(6, dtype=F64)}, T, "slab_scale", "float32", "float64"),
        ("slab scale of another K", gather_to_int8, lambda a: {"slab_scale": zeros(7)}, V, "slab_scale", "shape [6]", "[7]"),
        ("slab scale 1-d for groups", gather_groups_to_fp8, lambda a: {"slab_scale": zeros(12)}, V, "slab_scale", "shape [2, 6]", "[12]"),
        ("slab scale strided", gather_to_int8, lambda a: {"slab_scale": spread(a["slab_scale"])}, V, "slab_scale", FLAT, "strides [2]"),
        ("int4 slab of part of a group", g, lambda a: {"slab": zeros(6, 4, dtype=U8)}, V, "weight", "D a multiple of 32 for uint8 rows", "8"),
        ("int4 slab of another D", gather_to_int4, lambda a: {"slab": zeros(6, 32, dtype=U8)}, V, "slab", "shape [6, 16]", "[6, 32]"),
        ("float slab of int4", gather_from_int4, lambda a: {"slab": zeros(6, 16)}, T, "slab", "uint8", "float32"),
        ("no int4 slab scale", gather_to_int4, lambda a: {"slab_scale": None}, V, "slab_scale", GROUP_SCALE, "None"),
        ("int4 slab scale float32", gather_to_int4, lambda a: {"slab_scale": zeros(6, 1)}, T, "slab_scale", "bfloat16", "float32"),
        ("int4 slab scale per row", gather_to_int4, lambda a: {"slab_scale": zeros(6, dtype=BF16)}, V, "slab_scale", "shape [6, 1]", "[6]"),
        ("no int4 weight scale", gather_from_int4, lambda a: {"weight_scale": None}, V, "weight_scale", GROUP_SCALE, "None"),
        ("e2m1 slab of floats", g, lambda a: {"slab": zeros(6, 4, dtype=E2M1)}, T, "slab", MADE, "float4_e2m1fn_x2"),
        ("e2m1 slab of int4", gather_from_int4, lambda a: {"slab": zeros(6, 16, dtype=E2M1)}, T, "slab", "uint8", "float4_e2m1fn_x2"),
        ("float slab of e2m1", gather_e2m1, lambda a: {"slab": zeros(6, 8)}, T, "slab", "float4_e2m1fn_x2", "float32"),
        ("int8 slab of e2m1", gather_e2m1, lambda a: {"slab": zeros(6, 16, dtype=I8)}, T, "slab", "float4_e2m1fn_x2", "int8"),
        ("int4 slab of e2m1", gather_e2m1, lambda a: {"slab": a["slab"].view(U8)}, T, "slab", "float4_e2m1fn_x2", "uint8"),
        ("e2m1 slab of another D", gather_e2m1, lambda a: {"slab": zeros(6, 16, dtype=E2M1)}, V, "slab", "shape [6, 8]", "[6, 16]"),
        ("e2m1 of part of a group", gather_e2m1, lambda a: {"weight": zeros(50, 4, dtype=E2M1), "slab": zeros(6, 4, dtype=E2M1)}, V, "weight", "D a multiple of 16 for float4_e2m1fn_x2 rows", "8"),
        ("no e2m1 slab scale", gather_e2m1, lambda a: {"slab_scale": None}, V, "slab_scale", E2M1_SCALE, "None"),
        ("e2m1 weight scale float32", gather_e2m1, lambda a: {"weight_scale": zeros(50, 1)}, T, "weight_scale", "float8_e4m3fn", "float32"),
        ("weight transposed", g, lambda a: {"weight": zeros(8, 50).T}, V, "weight", INNER, "stride 50"),
        ("slab strided", g, lambda a: {"slab": zeros(6, 9)[:, :8]}, V, "slab", FLAT, "strides [9, 1]"),
        ("slab ids strided", g, lambda a: {"slab_ids": spread(a["slab_ids"])}, V, "slab_ids", FLAT, "strides [2]"),
        ("ids strided", g, lambda a: {"active_ids": spread(a["active_ids"])}, V, "active_ids", FLAT, "strides [2]"),
    ]  # fmt: skip


def _gather_value_rows() -> list[Row]:
    ids = "ids in [0, 50) or -1"
    # The bad id follows good ones: the op must not write the good ones before it finds the bad one.
    return [
        ("id V", gather_call, lambda a: {"active_ids": with_value(a["active_ids"], 5, 50)}, IndexError, "active_ids", ids, "50 at flat position 5"),
        ("id -2", gather_groups_to_fp8, lambda a: {"active_ids": with_value(a["active_ids"], 11, -2)}, IndexError, "active_ids", ids, "-2 at flat position 11"),
        ("one tensor for both ids", gather_call, lambda a: {"active_ids": a["slab_ids"]}, ValueError, "slab_ids", OWN, "memory shared with active_ids"),
        ("slab in the weight", gather_call, lambda a: {"slab": a["weight"][4:10]}, ValueError, "slab", OWN, "memory shared with weight"),
        ("one scale for both", gather_all, lambda a: {"weight_scale": a["slab_scale"]}, ValueError, "slab_scale", OWN, "memory shared with weight_scale"),
        ("slab and its ids overlap", gather_call, lambda a: {"slab_ids": a["slab"].view(I32).flatten()[40:46]}, ValueError, "slab_ids", OWN, "memory shared with slab"),
    ]  # fmt: skip


def _state_rows(v: Callable[[], Arguments], vg: Callable[[], Arguments]) -> list[Row]:
    """Return wrong states, for one group and for two."""
    V, T = ValueError, TypeError
    return [
        ("no group", v, lambda a: {"active_ids": zeros(0, 6, dtype=I32)}, V, "active_ids", "shape [K] or [G, K], G >= 1", "[0, 6]"),
        ("ids 3-d", v, lambda a: {"active_ids": zeros(1, 1, 6, dtype=I32)}, V, "active_ids", "shape [K] or [G, K], G >= 1", "[1, 1, 6]"),
        ("slots 1-d", v, lambda a: {"token_slots": a["token_slots"][0]}, V, "token_slots", "shape [G, V]", "[50]"),
        ("ids int64", v, lambda a: {"active_ids": a["active_ids"].long()}, T, "active_ids", "int32", "int64"),
        ("stamps int32", v, lambda a: {"slot_stamps": a["slot_stamps"].int()}, T, "slot_stamps", "int64", "int32"),
        ("slots int64", v, lambda a: {"token_slots": a["token_slots"].long()}, T, "token_slots", "int32", "int64"),
        ("clock int32", v, lambda a: {"clock": a["clock"].int()}, T, "clock", "int64", "int32"),
        ("stamps of another K", v, lambda a: {"slot_stamps": zeros(1, 5, dtype=I64)}, V, "slot_stamps", "shape [1, 6]", "[1, 5]"),
        ("stamps of another G", vg, lambda a: {"slot_stamps": zeros(1, 6, dtype=I64)}, V, "slot_stamps", "shape [2, 6]", "[1, 6]"),
        ("slots of another G", vg, lambda a: {"token_slots": zeros(3, 50, dtype=I32)}, V, "token_slots", "shape [2, 50]", "[3, 50]"),
        ("clock of another G", vg, lambda a: {"clock": zeros(1, dtype=I64)}, V, "clock", "shape [2]", "[1]"),
        ("ids strided", v, lambda a: {"active_ids": spread(a["active_ids"])}, V, "active_ids", FLAT, "strides [12, 2]"),
        ("stamps strided", v, lambda a: {"slot_stamps": spread(a["slot_stamps"])}, V, "slot_stamps", FLAT, "strides [12, 2]"),
        ("slots strided", v, lambda a: {"token_slots": spread(a["token_slots"])}, V, "token_slots", FLAT, "strides [100, 2]"),
        ("clock strided", vg, lambda a: {"clock": spread(a["clock"])}, V, "clock", FLAT, "strides [2]"),
    ]  # fmt: skip


def _update_rows() -> list[Row]:
    V, T = ValueError, TypeError
    v, vg = vocab_call, vocab_groups
    with_groups = "shape [G, N], or [N] with token_groups, as G > 1"
    return [
        *_state_rows(v, vg),
        ("tokens float", v, lambda a: {"tokens": zeros(1, 4)}, T, "tokens", "int32 or int64", "float32"),
        ("tokens 2-d, ragged", ragged, lambda a: {"tokens": zeros(2, 4, dtype=I64)}, V, "tokens", "shape [N] beside token_groups", "[2, 4]"),
        ("tokens 1-d for groups", vg, lambda a: {"tokens": zeros(4, dtype=I64)}, V, "tokens", with_groups, "[4]"),
        ("tokens of another G", vg, lambda a: {"tokens": zeros(3, 4, dtype=I64)}, V, "tokens", "shape [2, N]", "[3, 4]"),
        ("tokens 0-d", v, lambda a: {"tokens": zeros(dtype=I64)}, V, "tokens", "shape [1, N]", "[]"),
        ("tokens 3-d", v, lambda a: {"tokens": zeros(1, 1, 4, dtype=I64)}, V, "tokens", "shape [1, N]", "[1, 1, 4]"),
        ("token groups float", ragged, lambda a: {"token_groups": zeros(4)}, T, "token_groups", "int32 or int64", "float32"),
        ("token groups of another N", ragged, lambda a: {"token_groups": zeros(3, dtype=I64)}, V, "token_groups", "shape [4]", "[3]"),
        ("token groups strided", ragged, lambda a: {"token_groups": spread(a["token_groups"])}, V, "token_groups", FLAT, "strides [2]"),
        ("tokens strided", v, lambda a: {"tokens": spread(a["tokens"])}, V, "tokens", FLAT, "strides [8, 2]"),
    ]  # fmt: skip


def _vocab_value_rows() -> list[Row]:
    v, vg = vocab_call, vocab_groups
    ids, groups = "ids in [0, 50) or -1", "groups in [0, 2) or -1"
    bad = with_value
    return [
        ("token V", v, lambda a: {"tokens": bad(a["tokens"], 3, 50)}, IndexError, "tokens", ids, "50 at flat position 3"),
        ("token -2, int32", vg, lambda a: {"tokens": bad(a["tokens"], 6, -2).int()}, IndexError, "tokens", ids, "-2 at flat position 6"),
        ("token beyond 2^33", v, lambda a: {"tokens": bad(a["tokens"], 3, 2**33 + 1)}, IndexError, "tokens", ids, "8589934593 at flat position 3"),
        ("token V of an ignored group", ragged, lambda a: {"tokens": bad(a["tokens"], 2, 50)}, IndexError, "tokens", ids, "50 at flat position 2"),
        ("group G", ragged, lambda a: {"token_groups": bad(a["token_groups"], 3, 2)}, IndexError, "token_groups", groups, "2 at position 3"),
        ("group -2, int32", ragged, lambda a: {"token_groups": bad(a["token_groups"], 3, -2).int()}, IndexError, "token_groups", groups, "-2 at position 3"),
        ("group beyond 2^33", ragged, lambda a: {"token_groups": bad(a["token_groups"], 3, 2**33 + 1)}, IndexError, "token_groups", groups, "8589934593 at position 3"),
        ("ids are the tokens", vocab_groups, lambda a: {"tokens": a["active_ids"]}, ValueError, "active_ids", OWN, "memory shared with tokens"),
        ("stamps are the tokens", vocab_groups, lambda a: {"tokens": a["slot_stamps"]}, ValueError, "slot_stamps", OWN, "memory shared with tokens"),
        ("slots are the groups", ragged, lambda a: {"token_groups": a["token_slots"][0, 3:7]}, ValueError, "token_slots", OWN, "memory shared with token_groups"),
        ("ids in the slots", vocab_groups, lambda a: {"active_ids": a["token_slots"].flatten()[2:14].view(2, 6)}, ValueError, "token_slots", OWN, "memory shared with active_ids"),
        ("a clock among the stamps", vocab_call, lambda a: {"clock": a["slot_stamps"][0, 5:]}, ValueError, "clock", OWN, "memory shared with slot_stamps"),
    ]  # fmt: skip


def _count_rows() -> list[Row]:
    V, T = ValueError, TypeError
    c, cr, ragged = count_call, count_requests, count_ragged
    with_requests = "shape [R, N], or [N] with token_requests, as R > 1"
    return [
        ("counts 1-d", c, lambda a: {"text_counts": zeros(50, dtype=I32)}, V, "text_counts", "shape [C, V], C >= 1", "[50]"),
        ("no list", c, lambda a: {"text_counts": zeros(0, 50, dtype=I32)}, V, "text_counts", "shape [C, V], C >= 1", "[0, 50]"),
        ("counts int64", c, lambda a: {"text_counts": zeros(1, 50, dtype=I64)}, T, "text_counts", "int32", "int64"),
        ("counts strided", c, lambda a: {"text_counts": spread(a["text_counts"])}, V, "text_counts", FLAT, "strides [100, 2]"),
        ("total int64", c, lambda a: {"total_counts": zeros(50, dtype=I64)}, T, "total_counts", "int32", "int64"),
        ("total of another V", c, lambda a: {"total_counts": zeros(49, dtype=I32)}, V, "total_counts", "shape [50]", "[49]"),
        ("total strided", c, lambda a: {"total_counts": spread(a["total_counts"])}, V, "total_counts", FLAT, "strides [2]"),
        ("seen 1-d", c, lambda a: {"seen": zeros(2, dtype=I32)}, V, "seen", "shape [R, 2], R >= 1", "[2]"),
        ("no request", c, lambda a: {"seen": zeros(0, 2, dtype=I32)}, V, "seen", "shape [R, 2], R >= 1", "[0, 2]"),
        ("seen of another V", c, lambda a: {"seen": zeros(1, 3, dtype=I32)}, V, "seen", "shape [R, 2], R >= 1", "[1, 3]"),
        ("seen int64", c, lambda a: {"seen": zeros(1, 2, dtype=I64)}, T, "seen", "int32", "int64"),
        ("seen strided", c, lambda a: {"seen": spread(a["seen"])}, V, "seen", FLAT, "strides [4, 2]"),
        ("no lists", cr, lambda a: {"request_lists": None}, V, "request_lists", "the list of each request, as C > 1", "None"),
        ("lists float", cr, lambda a: {"request_lists": zeros(3)}, T, "request_lists", "int32 or int64", "float32"),
        ("lists of another R", cr, lambda a: {"request_lists": zeros(2, dtype=I64)}, V, "request_lists", "shape [3]", "[2]"),
        ("lists strided", cr, lambda a: {"request_lists": spread(a["request_lists"])}, V, "request_lists", FLAT, "strides [2]"),
        ("tokens float", c, lambda a: {"tokens": zeros(1, 4)}, T, "tokens", "int32 or int64", "float32"),
        ("tokens 2-d, ragged", ragged, lambda a: {"tokens": zeros(3, 4, dtype=I64)}, V, "tokens", "shape [N] beside token_requests", "[3, 4]"),
        ("tokens 1-d for requests", cr, lambda a: {"tokens": zeros(4, dtype=I64)}, V, "tokens", with_requests, "[4]"),
        ("tokens of another R", cr, lambda a: {"tokens": zeros(2, 4, dtype=I64)}, V, "tokens", "shape [3, N]", "[2, 4]"),
        ("tokens 0-d", c, lambda a: {"tokens": zeros(dtype=I64)}, V, "tokens", "shape [1, N]", "[]"),
        ("tokens strided", c, lambda a: {"tokens": spread(a["tokens"])}, V, "tokens", FLAT, "strides [8, 2]"),
        ("token requests float", ragged, lambda a: {"token_requests": zeros(4)}, T, "token_requests", "int32 or int64", "float32"),
        ("token requests of another N", ragged, lambda a: {"token_requests": zeros(3, dtype=I64)}, V, "token_requests", "shape [4]", "[3]"),
        ("token requests strided", ragged, lambda a: {"token_requests": spread(a["token_requests"])}, V, "token_requests", FLAT, "strides [2]"),
    ]  # fmt: skip


def _count_value_rows() -> list[Row]:
    V = ValueError
    return [
        ("one table for both counts", count_call, lambda a: {"total_counts": a["text_counts"][0]}, V, "total_counts", OWN, "memory shared with text_counts"),
        ("seen in the counts", count_call, lambda a: {"seen": a["text_counts"][:, 3:5]}, V, "seen", OWN, "memory shared with text_counts"),
        ("tokens are the counts", count_call, lambda a: {"tokens": a["text_counts"]}, V, "text_counts", OWN, "memory shared with tokens"),
        ("lists are seen", count_call, lambda a: {"request_lists": a["seen"][0, :1]}, V, "seen", OWN, "memory shared with request_lists"),
        ("requests are the total", count_ragged, lambda a: {"token_requests": a["total_counts"][:4]}, V, "total_counts", OWN, "memory shared with token_requests"),
    ]  # fmt: skip


def _observe_rows() -> list[Row]:
    V, T = ValueError, TypeError
    o, og, more, plain, update = (
        observe_call,
        observe_groups,
        observe_requests,
        observe_plain,
        update_call,
    )
    groups, requests = (
        "the group of each token, as G > 1",
        "the request of each token, as R is neither 1 nor G",
    )
    beside, of_tally = "shape [B, n] beside lengths", "shape [7 R + 50], R >= 1"
    return [
        *_state_rows(o, og),
        ("tokens float", o, lambda a: {"tokens": zeros(2, 2)}, T, "tokens", "int32 or int64", "float32"),
        ("tokens bool", o, lambda a: {"tokens": zeros(2, 2).bool()}, T, "tokens", "int32 or int64", "bool"),
        ("tokens 1-d beside lengths", o, lambda a: {"tokens": zeros(4, dtype=I64)}, V, "tokens", beside, "[4]"),
        ("tokens 3-d beside lengths", o, lambda a: {"tokens": zeros(2, 2, 1, dtype=I64)}, V, "tokens", beside, "[2, 2, 1]"),
        ("tokens 0-d", plain, lambda a: {"tokens": zeros(dtype=I64)}, V, "tokens", "shape [N] or [B, n]", "[]"),
        ("tokens 3-d", plain, lambda a: {"tokens": zeros(1, 2, 2, dtype=I64)}, V, "tokens", "shape [N] or [B, n]", "[1, 2, 2]"),
        ("tokens strided", o, lambda a: {"tokens": spread(a["tokens"])}, V, "tokens", FLAT, "strides [4, 2]"),
        ("lengths float", o, lambda a: {"lengths": zeros(2)}, T, "lengths", "int32 or int64", "float32"),
        ("lengths of another B", o, lambda a: {"lengths": zeros(3, dtype=I64)}, V, "lengths", "shape [2]", "[3]"),
        ("lengths 2-d", o, lambda a: {"lengths": zeros(2, 1, dtype=I64)}, V, "lengths", "shape [2]", "[2, 1]"),
        ("lengths strided", o, lambda a: {"lengths": spread(a["lengths"])}, V, "lengths", FLAT, "strides [2]"),
        ("candidates float", o, lambda a: {"candidates": zeros(1)}, T, "candidates", "int32 or int64", "float32"),
        ("candidates strided", o, lambda a: {"candidates": zeros(1, 4, dtype=I64)[:, ::2]}, V, "candidates", FLAT, "strides [4, 2]"),
        ("rows int64", o, lambda a: {"token_rows": a["token_rows"].long()}, T, "token_rows", "int32", "int64"),
        ("rows 2-d", o, lambda a: {"token_rows": a["token_rows"][None]}, V, "token_rows", "shape [T], T >= 1", "[1, 60]"),
        ("no rows", o, lambda a: {"token_rows": zeros(0, dtype=I32)}, V, "token_rows", "shape [T], T >= 1", "[0]"),
        ("rows strided", o, lambda a: {"token_rows": spread(a["token_rows"])}, V, "token_rows", FLAT, "strides [2]"),
        ("no groups", og, lambda a: {"token_groups": None}, V, "token_groups", groups, "None"),
        ("token groups float", og, lambda a: {"token_groups": zeros(5)}, T, "token_groups", "int32 or int64", "float32"),
        ("token groups of the tokens alone", og, lambda a: {"token_groups": zeros(4, dtype=I64)}, V, "token_groups", "shape [5]", "[4]"),
        ("token groups 2-d", plain, lambda a: {"token_groups": zeros(2, 2, dtype=I64)}, V, "token_groups", "shape [4]", "[2, 2]"),
        ("token groups strided", og, lambda a: {"token_groups": spread(a["token_groups"])}, V, "token_groups", FLAT, "strides [2]"),
        ("requests without a tally", update, lambda a: {"token_requests": a["token_groups"]}, V, "token_requests", "None without tally", "a tensor"),
        ("lists without a tally", update, lambda a: {"num_lists": 2}, V, "num_lists", "0 without tally", "2"),
        ("negative lists", o, lambda a: {"num_lists": -1}, V, "num_lists", "at least 0", "-1"),
        ("tally int64", o, lambda a: {"tally": a["tally"].long()}, T, "tally", "int32", "int64"),
        ("tally strided", o, lambda a: {"tally": spread(a["tally"])}, V, "tally", FLAT, "strides [2]"),
        ("tally 2-d", o, lambda a: {"tally": a["tally"][None]}, V, "tally", of_tally, "[1, 57]"),
        ("tally of no request", o, lambda a: {"tally": zeros(50, dtype=I32)}, V, "tally", of_tally, "[50]"),
        ("tally that is less than its tables", o, lambda a: {"tally": zeros(36, dtype=I32)}, V, "tally", of_tally, "[36]"),
        ("tally of a part of a request", o, lambda a: {"tally": zeros(60, dtype=I32)}, V, "tally", of_tally, "[60]"),
        ("tally of fewer lists", o, lambda a: {"num_lists": 2}, V, "tally", "shape [7 R + 150], R >= 1", "[57]"),
        ("tally of lists, for none", o, lambda a: {"num_lists": 0}, V, "tally", "shape [4 R + 0], R >= 1", "[57]"),
        ("more requests than groups", more, lambda a: {"token_requests": None}, V, "token_requests", requests, "None"),
        ("token requests float", more, lambda a: {"token_requests": zeros(5)}, T, "token_requests", "int32 or int64", "float32"),
        ("token requests of the tokens alone", more, lambda a: {"token_requests": zeros(4, dtype=I64)}, V, "token_requests", "shape [5]", "[4]"),
        ("token requests strided", more, lambda a: {"token_requests": spread(a["token_requests"])}, V, "token_requests", FLAT, "strides [2]"),
    ]  # fmt: skip


def _observe_value_rows() -> list[Row]:
    V, ids, mapped, groups = (
        ValueError,
        "ids in [0, 50) or -1",
        "ids in [0, 60) or -1",
        "groups in [0, 2) or -1",
    )
    o, og, plain, more = observe_call, observe_groups, observe_plain, observe_requests
    bad = with_value
    return [
        ("token V", plain, lambda a: {"tokens": bad(a["tokens"], 3, 50)}, IndexError, "tokens", ids, "50 at flat position 3"),
        ("token -2, int32", plain, lambda a: {"tokens": bad(a["tokens"], 2, -2).int()}, IndexError, "tokens", ids, "-2 at flat position 2"),
        ("token T", o, lambda a: {"tokens": bad(a["tokens"], 1, 60)}, IndexError, "tokens", mapped, "60 at flat position 1"),
        ("token beyond 2^33", o, lambda a: {"tokens": bad(a["tokens"], 2, 2**33 + 1)}, IndexError, "tokens", mapped, "8589934593 at flat position 2"),
        ("token that a length includes", o, lambda a: {"lengths": torch.tensor([2, 2])}, IndexError, "tokens", mapped, "99 at flat position 3"),
        ("token that a long length includes", o, lambda a: {"lengths": torch.tensor([2, 2**33], dtype=I64)}, IndexError, "tokens", mapped, "99 at flat position 3"),
        ("candidate T", o, lambda a: {"candidates": bad(a["candidates"], 0, 60)}, IndexError, "candidates", mapped, "60 at flat position 0"),
        ("candidate -2, int32", o, lambda a: {"candidates": bad(a["candidates"], 0, -2).int()}, IndexError, "candidates", mapped, "-2 at flat position 0"),
        ("group G", og, lambda a: {"token_groups": bad(a["token_groups"], 0, 2)}, IndexError, "token_groups", groups, "2 at position 0"),
        ("group -2, int32", og, lambda a: {"token_groups": bad(a["token_groups"], 4, -2).int()}, IndexError, "token_groups", groups, "-2 at position 4"),
        ("tally between two words", o, lambda a: {"tally": zeros(58, dtype=I32)[1:]}, V, "tally", "data aligned to 8 bytes", "data aligned to 4"),
        ("ids in the slots", og, lambda a: {"active_ids": a["token_slots"].flatten()[2:14].view(2, 6)}, V, "token_slots", OWN, "memory shared with active_ids"),
        ("a tally of slots", plain, lambda a: {"tally": a["token_slots"][0, :4], "num_lists": 0}, V, "tally", OWN, "memory shared with token_slots"),
        ("tokens are the stamps", plain, lambda a: {"tokens": a["slot_stamps"][:, 1:5]}, V, "slot_stamps", OWN, "memory shared with tokens"),
        ("lengths in the tally", o, lambda a: {"lengths": a["tally"][3:5]}, V, "tally", OWN, "memory shared with lengths"),
        ("candidates are the ids", o, lambda a: {"candidates": a["active_ids"][:, :1]}, V, "active_ids", OWN, "memory shared with candidates"),
        ("rows are the slots", o, lambda a: {"token_rows": a["token_slots"][0]}, V, "token_slots", OWN, "memory shared with token_rows"),
        ("groups are the slots", og, lambda a: {"token_groups": a["token_slots"][0, 3:8]}, V, "token_slots", OWN, "memory shared with token_groups"),
        ("requests in the tally", more, lambda a: {"token_requests": a["tally"][:5]}, V, "tally", OWN, "memory shared with token_requests"),
    ]  # fmt: skip


def _refill_rows() -> list[Row]:
    V, T = ValueError, TypeError
    r, rg = refill_call, refill_groups
    return [
        *_state_rows(r, rg),
        ("counts 1-d", r, lambda a: {"text_counts": zeros(50, dtype=I32)}, V, "text_counts", "shape [C, V], C >= 1", "[50]"),
        ("no list", r, lambda a: {"text_counts": zeros(0, 50, dtype=I32)}, V, "text_counts", "shape [C, V], C >= 1", "[0, 50]"),
        ("counts int64", r, lambda a: {"text_counts": zeros(2, 50, dtype=I64)}, T, "text_counts", "int32", "int64"),
        ("counts strided", r, lambda a: {"text_counts": spread(a["text_counts"])}, V, "text_counts", FLAT, "strides [100, 2]"),
        ("counts of another V", r, lambda a: {"text_counts": zeros(2, 49, dtype=I32), "total_counts": None}, V, "text_counts", "shape [2, 50]", "[2, 49]"),
        ("total int64", r, lambda a: {"total_counts": zeros(50, dtype=I64)}, T, "total_counts", "int32", "int64"),
        ("total of another V", r, lambda a: {"total_counts": zeros(49, dtype=I32)}, V, "total_counts", "shape [50]", "[49]"),
        ("total strided", r, lambda a: {"total_counts": spread(a["total_counts"])}, V, "total_counts", FLAT, "strides [2]"),
        ("ranks int64", r, lambda a: {"token_ranks": a["token_ranks"].long()}, T, "token_ranks", "int32", "int64"),
        ("ranks of another V", r, lambda a: {"token_ranks": zeros(51, dtype=I32)}, V, "token_ranks", "shape [50]", "[51]"),
        ("ranks strided", r, lambda a: {"token_ranks": spread(a["token_ranks"])}, V, "token_ranks", FLAT, "strides [2]"),
        ("lists float", rg, lambda a: {"group_lists": zeros(2)}, T, "group_lists", "int32 or int64", "float32"),
        ("lists of another G", rg, lambda a: {"group_lists": zeros(3, dtype=I64)}, V, "group_lists", "shape [2]", "[3]"),
        ("lists strided", rg, lambda a: {"group_lists": spread(a["group_lists"])}, V, "group_lists", FLAT, "strides [2]"),
        ("pinned -1", r, lambda a: {"pinned": -1}, V, "pinned", "0 to K = 6", "-1"),
        ("pinned beyond K", r, lambda a: {"pinned": 7}, V, "pinned", "0 to K = 6", "7"),
        ("pinned beyond 2^33", r, lambda a: {"pinned": 2**33 + 1}, V, "pinned", "0 to K = 6", "8589934593"),
    ]  # fmt: skip


def _refill_value_rows() -> list[Row]:
    lists, V = "lists in [0, 2) or -1", ValueError
    bad = with_value
    return [
        ("list C", refill_groups, lambda a: {"group_lists": bad(a["group_lists"], 1, 2)}, IndexError, "group_lists", lists, "2 at position 1"),
        ("list -2, int32", refill_groups, lambda a: {"group_lists": bad(a["group_lists"], 1, -2).int()}, IndexError, "group_lists", lists, "-2 at position 1"),
        ("list beyond 2^33", refill_call, lambda a: {"group_lists": bad(a["group_lists"], 0, 2**33 + 1)}, IndexError, "group_lists", lists, "8589934593 at position 0"),
        ("ids in the slots", refill_groups, lambda a: {"active_ids": a["token_slots"].flatten()[2:14].view(2, 6)}, V, "token_slots", OWN, "memory shared with active_ids"),
        ("counts are the slots", refill_groups, lambda a: {"text_counts": a["token_slots"]}, V, "token_slots", OWN, "memory shared with text_counts"),
        ("ranks are the slots", refill_call, lambda a: {"token_ranks": a["token_slots"][0]}, V, "token_slots", OWN, "memory shared with token_ranks"),
        ("total is the slots", refill_call, lambda a: {"total_counts": a["token_slots"][0]}, V, "token_slots", OWN, "memory shared with total_counts"),
        ("lists are the clock", refill_groups, lambda a: {"group_lists": a["clock"]}, V, "clock", OWN, "memory shared with group_lists"),
    ]  # fmt: skip


def _sampling(good: Callable[[], Arguments]) -> Callable[[], Arguments]:
    by_row = {
        "temperatures": torch.ones(3),
        "seeds": zeros(3, dtype=I64),
        "positions": zeros(3, dtype=I64),
    }
    return lambda: {**good(), **{name: tensor.clone() for name, tensor in by_row.items()}}


def sample_call(**options: Any) -> Arguments:
    """Return a call with every argument, except a weight_scale."""
    head = _sampling(lambda: head_call(num_groups=2, bias=torch.float32, **options))()
    more = {
        "row_tokens": torch.arange(50),
        "token_logits": zeros(5, 60),
        "logit_rows": torch.tensor([4, -1, 0]),
    }
    return {**head, **more}


def sample_plain() -> Arguments:
    """Return a call with token_logits, but neither row_tokens nor logit_rows."""
    return {**sample_call(), "row_tokens": None, "logit_rows": None}


def sample_slab() -> Arguments:
    """Return a call whose slab names its tokens freely."""
    return {**_sampling(packed)(), "token_logits": zeros(3, 60)}


def _sample_rows() -> list[Row]:
    V, T = ValueError, TypeError
    s, plain, slab = sample_call, sample_plain, sample_slab
    return [
        ("temperatures float16", s, lambda a: {"temperatures": a["temperatures"].half()}, T, "temperatures", "float32", "float16"),
        ("temperatures of another M", s, lambda a: {"temperatures": zeros(1)}, V, "temperatures", "shape [3]", "[1]"),
        ("temperatures strided", s, lambda a: {"temperatures": spread(a["temperatures"])}, V, "temperatures", FLAT, "strides [2]"),
        ("seeds int32", s, lambda a: {"seeds": a["seeds"].int()}, T, "seeds", "int64", "int32"),
        ("seeds 2-d", s, lambda a: {"seeds": a["seeds"][None]}, V, "seeds", "shape [3]", "[1, 3]"),
        ("seeds strided", s, lambda a: {"seeds": spread(a["seeds"])}, V, "seeds", FLAT, "strides [2]"),
        ("positions int32", s, lambda a: {"positions": a["positions"].int()}, T, "positions", "int64", "int32"),
        ("positions of another M", s, lambda a: {"positions": zeros(4, dtype=I64)}, V, "positions", "shape [3]", "[4]"),
        ("positions strided", s, lambda a: {"positions": spread(a["positions"])}, V, "positions", FLAT, "strides [2]"),
        ("row tokens int32", s, lambda a: {"row_tokens": a["row_tokens"].int()}, T, "row_tokens", "int64", "int32"),
        ("row tokens 2-d", s, lambda a: {"row_tokens": a["row_tokens"][None]}, V, "row_tokens", "shape [V]", "[1, 50]"),
        ("row tokens of another V", s, lambda a: {"row_tokens": torch.arange(49)}, V, "row_tokens", "shape [50]", "[49]"),
        ("row tokens strided", s, lambda a: {"row_tokens": spread(a["row_tokens"])}, V, "row_tokens", FLAT, "strides [2]"),
        ("logits float64", s, lambda a: {"token_logits": zeros(5, 60, dtype=F64)}, T, "token_logits", FLOAT, "float64"),
        ("logits 1-d", s, lambda a: {"token_logits": zeros(60)}, V, "token_logits", "shape [R, V']", "[60]"),
        ("logits of fewer columns", plain, lambda a: {"token_logits": zeros(3, 49)}, V, "token_logits", "at least V = 50 columns", "49"),
        ("logits of fewer rows", plain, lambda a: {"token_logits": zeros(2, 50)}, V, "token_logits", "at least M = 3 rows, or logit_rows", "2"),
        ("logits of fewer rows, slab", slab, lambda a: {"token_logits": zeros(2, 3)}, V, "token_logits", "at least M = 3 rows, or logit_rows", "2"),
        ("logits transposed", s, lambda a: {"token_logits": zeros(60, 5).T}, V, "token_logits", INNER, "stride 5"),
        ("logits expanded", s, lambda a: {"token_logits": zeros(1, 60).expand(5, 60)}, V, "token_logits", "rows that do not overlap", "stride 0"),
        ("logit rows without logits", s, lambda a: {"token_logits": None}, V, "logit_rows", "None without token_logits", "a tensor"),
        ("logit rows float", s, lambda a: {"logit_rows": zeros(3)}, T, "logit_rows", "int32 or int64", "float32"),
        ("logit rows of another M", s, lambda a: {"logit_rows": zeros(2, dtype=I64)}, V, "logit_rows", "shape [3]", "[2]"),
        ("logit rows strided", s, lambda a: {"logit_rows": spread(a["logit_rows"])}, V, "logit_rows", FLAT, "strides [2]"),
    ]  # fmt: skip


def _sample_value_rows() -> list[Row]:
    rows, bad = "rows in [0, 5) or -1", with_value
    s, plain, slab, own = sample_call, sample_plain, sample_slab, "memory shared with "
    V = ValueError
    return [
        ("logit row R", s, lambda a: {"logit_rows": bad(a["logit_rows"], 1, 5)}, IndexError, "logit_rows", rows, "5 at position 1"),
        ("logit row -2, int32", s, lambda a: {"logit_rows": bad(a["logit_rows"], 2, -2).int()}, IndexError, "logit_rows", rows, "-2 at position 2"),
        ("logit row beyond 2^33", s, lambda a: {"logit_rows": bad(a["logit_rows"], 0, 2**33 + 1)}, IndexError, "logit_rows", rows, "8589934593 at position 0"),
        ("id without a column, slab", slab, lambda a: {"active_ids": bad(a["active_ids"], 3, 60)}, IndexError, "active_ids", "ids in [0, 60) or -1", "60 at flat position 3"),
        ("id without a token, slab", slab, lambda a: {"active_ids": bad(a["active_ids"], 3, 55), "row_tokens": torch.arange(55)}, IndexError, "active_ids", "ids in [0, 55) or -1", "55 at flat position 3"),
        ("logits in the weight", plain, lambda a: {"token_logits": a["weight"].view(-1)[:150].view(3, 50)}, V, "token_logits", OWN, own + "weight"),
        ("logits in the hidden", slab, lambda a: {"token_logits": a["hidden"], "active_ids": zeros(2, 6, dtype=I32)}, V, "token_logits", OWN, own + "hidden"),
        ("logits are the bias", s, lambda a: {"token_logits": a["bias"][None], "logit_rows": torch.tensor([0, -1, -1])}, V, "token_logits", OWN, own + "bias"),
        ("logits are the temperatures", s, lambda a: {"token_logits": a["temperatures"][None], "logit_rows": torch.tensor([0, -1, -1])}, V, "token_logits", OWN, own + "temperatures"),
        ("logits in the seeds", s, lambda a: {"token_logits": a["seeds"].view(torch.float32)[None], "logit_rows": torch.tensor([0, -1, -1])}, V, "token_logits", OWN, own + "seeds"),
        ("logits in the positions", s, lambda a: {"token_logits": a["positions"].view(torch.float32)[None], "logit_rows": torch.tensor([0, -1, -1])}, V, "token_logits", OWN, own + "positions"),
        ("logits in the tokens", s, lambda a: {"token_logits": a["row_tokens"].view(torch.float32)[None], "logit_rows": torch.tensor([0, -1, -1])}, V, "token_logits", OWN, own + "row_tokens"),
        ("logits in their rows", s, lambda a: {"token_logits": a["logit_rows"].view(torch.float32)[None, :2]}, V, "token_logits", OWN, own + "logit_rows"),
        ("logits in the ids", s, lambda a: {"token_logits": a["active_ids"].view(torch.float32)}, V, "token_logits", OWN, own + "active_ids"),
        ("logits in the groups", s, lambda a: {"token_logits": a["group_ids"].view(torch.float32)[None]}, V, "token_logits", OWN, own + "group_ids"),
    ]  # fmt: skip


def _with_k(good: Callable[[], Arguments]) -> Callable[[], Arguments]:
    return lambda: {**good(), "k": 4}


def _table() -> list[BadCall]:
    head = [(row, False) for row in _head_rows()] + [(row, True) for row in _head_value_rows()]
    calls = [BadCall("sparse_logits", *row, values=values) for row, values in head]
    for row, values in [*head, *((row, False) for row in _k_rows())]:
        name, good, *rest = row
        calls.append(BadCall("sparse_head", name, _with_k(good), *rest, values=values))
    for (name, good, *rest), values in head:
        calls.append(BadCall("sparse_sample", name, _sampling(good), *rest, values=values))
    for op, shapes, values in (
        ("sparse_sample", _sample_rows(), _sample_value_rows()),
        ("gather_rows_", _gather_rows(), _gather_value_rows()),
        ("vocab_update_", _update_rows(), _vocab_value_rows()),
        ("vocab_count_", _count_rows(), _count_value_rows()),
        ("vocab_observe_", _observe_rows(), _observe_value_rows()),
        ("vocab_refill_", _refill_rows(), _refill_value_rows()),
        ("tree_grow_", tree.grow_rows(), tree.grow_value_rows()),
        ("tree_cut", tree.cut_rows(), tree.cut_value_rows()),
        ("tree_accept", tree.accept_rows(), tree.accept_value_rows()),
    ):
        calls += [BadCall(op, *row) for row in shapes]
        calls += [BadCall(op, *row, values=True) for row in values]
    return calls


BAD_CALLS = _table()

# For each op: a good call with all tensor arguments, and those that must be on the first one's device.
ON_ONE_DEVICE: list[tuple[str, Callable[[], Arguments], tuple[str, ...]]] = [
    ("sparse_logits", lambda: {**int8(), "bias": zeros(50), "group_ids": zeros(3, dtype=I64)},
     ("weight", "active_ids", "group_ids", "weight_scale", "bias")),
    ("sparse_sample", lambda: {**sample_call(weight_dtype=I8)},
     ("weight", "active_ids", "group_ids", "weight_scale", "bias", "temperatures", "seeds", "positions",
      "row_tokens", "token_logits", "logit_rows")),
    ("gather_rows_", gather_from_int8,
     ("weight", "slab_ids", "active_ids", "slab_scale", "weight_scale")),
    ("vocab_update_", ragged,
     ("slot_stamps", "token_slots", "clock", "tokens", "token_groups")),
    ("vocab_count_", count_ragged,
     ("seen", "tokens", "token_requests", "request_lists", "total_counts")),
    ("vocab_observe_", observe_requests,
     ("slot_stamps", "token_slots", "clock", "tokens", "lengths", "candidates", "token_rows",
      "token_groups", "token_requests", "tally")),
    ("vocab_refill_", refill_call,
     ("slot_stamps", "token_slots", "clock", "text_counts", "token_ranks", "group_lists",
      "total_counts")),
    ("tree_grow_", tree.grow_call,
     ("pool_parents", "pool_costs", "logits", "token_ids", "logsumexp", "frontier")),
    ("tree_cut", tree.cut_call,
     ("pool_tokens", "pool_parents", "pool_costs")),
    ("tree_accept", tree.accept_call,
     ("parents", "chosen")),
]  # fmt: skip
