# SPDX-License-Identifier: Apache-2.0
"""Wrong calls of the ops for draft trees, as rows of the table in bad_calls.py."""

# The table has one wrong call per line.
# ruff: noqa: E501
from collections.abc import Callable
from typing import Any

import torch
from generators import spread, with_value
from torch import Tensor

Arguments = dict[str, Any]
Row = tuple[str, Callable[[], Arguments], Callable[[Arguments], Arguments], type, str, str, str]

F16, I32, I64 = torch.float16, torch.int32, torch.int64
OWN = "memory of its own"
FLAT = "a contiguous tensor"


def zeros(*shape: int, dtype: torch.dtype = I64) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


def pool() -> Arguments:
    """Return the pools of two texts with 20 places."""
    return {
        "pool_tokens": zeros(2, 20),
        "pool_parents": zeros(2, 20) - 1,
        "pool_costs": torch.zeros(2, 20),
    }


def grow_call() -> Arguments:
    """Return a call for frontiers of three nodes with four candidates each."""
    level = {"logits": torch.zeros(6, 4), "token_ids": zeros(6, 4), "logsumexp": torch.zeros(6)}
    return {**pool(), **level, "width": 5, "begin": 4, "frontier": torch.tensor([[0, 3, -1]] * 2)}


def grow_roots() -> Arguments:
    """Return a call for the first level."""
    level = {"logits": torch.zeros(2, 4), "token_ids": zeros(2, 4), "logsumexp": torch.zeros(2)}
    return {**pool(), **level, "width": 5}


def cut_call() -> Arguments:
    return {"roots": zeros(2), **pool(), "size": 6}


def accept_call() -> Arguments:
    return {"tokens": zeros(2, 7), "parents": zeros(2, 7), "chosen": zeros(2, 7), "depth": 3}


def _pool_rows(good: Callable[[], Arguments]) -> list[Row]:
    V, T = ValueError, TypeError
    return [
        ("pool 1-d", good, lambda a: {"pool_tokens": zeros(20)}, V, "pool_tokens", "", "[20]"),
        ("tokens int32", good, lambda a: {"pool_tokens": a["pool_tokens"].int()}, T, "pool_tokens", "int64", "int32"),
        ("tokens strided", good, lambda a: {"pool_tokens": spread(a["pool_tokens"])}, V, "pool_tokens", FLAT, "strides [40, 2]"),
        ("parents int32", good, lambda a: {"pool_parents": a["pool_parents"].int()}, T, "pool_parents", "int64", "int32"),
        ("parents of another N", good, lambda a: {"pool_parents": zeros(2, 19)}, V, "pool_parents", "shape [2, 20]", "[2, 19]"),
        ("parents strided", good, lambda a: {"pool_parents": spread(a["pool_parents"])}, V, "pool_parents", FLAT, "strides [40, 2]"),
        ("costs float16", good, lambda a: {"pool_costs": a["pool_costs"].half()}, T, "pool_costs", "float32", "float16"),
        ("costs of another B", good, lambda a: {"pool_costs": torch.zeros(1, 20)}, V, "pool_costs", "shape [2, 20]", "[1, 20]"),
        ("costs strided", good, lambda a: {"pool_costs": spread(a["pool_costs"])}, V, "pool_costs", FLAT, "strides [40, 2]"),
    ]  # fmt: skip


def _expecting(rows: list[Row], expected: str) -> list[Row]:
    """Fill in what is expected, where a row leaves it open."""
    return [(*row[:5], row[5] or expected, row[6]) for row in rows]


def grow_rows() -> list[Row]:
    V, T = ValueError, TypeError
    g = grow_call
    return [
        *_expecting(_pool_rows(g), "shape [B, N]"),
        ("frontier int32", g, lambda a: {"frontier": a["frontier"].int()}, T, "frontier", "int64", "int32"),
        ("frontier 1-d", g, lambda a: {"frontier": zeros(3)}, V, "frontier", "shape [2, w], w >= 1", "[3]"),
        ("frontier of another B", g, lambda a: {"frontier": zeros(1, 3)}, V, "frontier", "shape [2, w], w >= 1", "[1, 3]"),
        ("no frontier", g, lambda a: {"frontier": zeros(2, 0)}, V, "frontier", "shape [2, w], w >= 1", "[2, 0]"),
        ("frontier strided", g, lambda a: {"frontier": spread(a["frontier"])}, V, "frontier", FLAT, "strides [6, 2]"),
        ("logits 1-d", g, lambda a: {"logits": torch.zeros(6)}, V, "logits", "shape [6, k], k >= 1", "[6]"),
        ("logits of another w", g, lambda a: {"logits": torch.zeros(4, 4)}, V, "logits", "shape [6, k], k >= 1", "[4, 4]"),
        ("logits of a frontier", grow_roots, lambda a: {"logits": torch.zeros(6, 4)}, V, "logits", "shape [2, k], k >= 1", "[6, 4]"),
        ("no logits", g, lambda a: {"logits": torch.zeros(6, 0)}, V, "logits", "shape [6, k], k >= 1", "[6, 0]"),
        ("logits float16", g, lambda a: {"logits": a["logits"].half()}, T, "logits", "float32", "float16"),
        ("logits strided", g, lambda a: {"logits": spread(a["logits"])}, V, "logits", FLAT, "strides [8, 2]"),
        ("ids int32", g, lambda a: {"token_ids": a["token_ids"].int()}, T, "token_ids", "int64", "int32"),
        ("ids of another k", g, lambda a: {"token_ids": zeros(6, 3)}, V, "token_ids", "shape [6, 4]", "[6, 3]"),
        ("ids strided", g, lambda a: {"token_ids": spread(a["token_ids"])}, V, "token_ids", FLAT, "strides [8, 2]"),
        ("logsumexp float64", g, lambda a: {"logsumexp": a["logsumexp"].double()}, T, "logsumexp", "float32", "float64"),
        ("logsumexp 2-d", g, lambda a: {"logsumexp": torch.zeros(6, 1)}, V, "logsumexp", "shape [6]", "[6, 1]"),
        ("logsumexp strided", g, lambda a: {"logsumexp": spread(a["logsumexp"])}, V, "logsumexp", FLAT, "strides [2]"),
        ("width 0", g, lambda a: {"width": 0}, V, "width", "at least 1", "0"),
        ("begin -1", g, lambda a: {"begin": -1}, V, "begin", "0 to N - w k = 8", "-1"),
        ("begin 9", g, lambda a: {"begin": 9}, V, "begin", "0 to N - w k = 8", "9"),
        ("begin 2^63 - 1", g, lambda a: {"begin": 2**63 - 1}, V, "begin", "0 to N - w k = 8", str(2**63 - 1)),
        ("no room", g, lambda a: {"logits": torch.zeros(6, 7), "token_ids": zeros(6, 7), "begin": 0}, V, "begin", "0 to N - w k = -1", "0"),
    ]  # fmt: skip


def grow_value_rows() -> list[Row]:
    V, g, own = ValueError, grow_call, "memory shared with "
    places = "places in [0, 4) or -1"
    return [
        ("parents are the tokens", g, lambda a: {"pool_parents": a["pool_tokens"]}, V, "pool_parents", OWN, own + "pool_tokens"),
        ("logits in the costs", g, lambda a: {"logits": a["pool_costs"].flatten()[:24].view(6, 4)}, V, "pool_costs", OWN, own + "logits"),
        ("ids in the tokens", g, lambda a: {"token_ids": a["pool_tokens"].flatten()[:24].view(6, 4)}, V, "pool_tokens", OWN, own + "token_ids"),
        ("logsumexp in the costs", g, lambda a: {"logsumexp": a["pool_costs"][0, :6]}, V, "pool_costs", OWN, own + "logsumexp"),
        ("frontier in the parents", g, lambda a: {"frontier": a["pool_parents"].flatten()[:6].view(2, 3)}, V, "pool_parents", OWN, own + "frontier"),
        ("a place not yet filled", grow_call, lambda a: {"frontier": torch.tensor([[0, 3, -1], [1, 4, 0]])}, IndexError, "frontier", places, "4 at flat position 4"),
        ("a negative place", grow_call, lambda a: {"frontier": torch.tensor([[0, 3, -1], [1, 2, -2]])}, IndexError, "frontier", places, "-2 at flat position 5"),
    ]  # fmt: skip


def cut_rows() -> list[Row]:
    V, T = ValueError, TypeError
    c = cut_call
    return [
        ("roots 2-d", c, lambda a: {"roots": zeros(2, 1)}, V, "roots", "shape [B]", "[2, 1]"),
        ("roots int32", c, lambda a: {"roots": a["roots"].int()}, T, "roots", "int64", "int32"),
        ("roots strided", c, lambda a: {"roots": spread(a["roots"])}, V, "roots", FLAT, "strides [2]"),
        *_expecting(_pool_rows(c), "shape [2, N]"),
        ("pools of another B", c, lambda a: {"roots": zeros(3)}, V, "pool_tokens", "shape [3, N]", "[2, 20]"),
        ("size 0", c, lambda a: {"size": 0}, V, "size", "at least 1", "0"),
    ]  # fmt: skip


def cut_value_rows() -> list[Row]:
    places = "places in [0, 20) or -1"
    return [
        ("a parent out of range", cut_call, lambda a: {"pool_parents": with_value(a["pool_parents"], 27, 20)}, IndexError, "pool_parents", places, "20 at flat position 27"),
        ("a negative parent", cut_call, lambda a: {"pool_parents": with_value(a["pool_parents"], 3, -2)}, IndexError, "pool_parents", places, "-2 at flat position 3"),
    ]  # fmt: skip


def accept_rows() -> list[Row]:
    V, T = ValueError, TypeError
    a_ = accept_call
    return [
        ("tokens 1-d", a_, lambda a: {"tokens": zeros(7)}, V, "tokens", "shape [B, n], n >= 1", "[7]"),
        ("no nodes", a_, lambda a: {"tokens": zeros(2, 0)}, V, "tokens", "shape [B, n], n >= 1", "[2, 0]"),
        ("tokens int32", a_, lambda a: {"tokens": a["tokens"].int()}, T, "tokens", "int64", "int32"),
        ("tokens strided", a_, lambda a: {"tokens": spread(a["tokens"])}, V, "tokens", FLAT, "strides [14, 2]"),
        ("parents int32", a_, lambda a: {"parents": a["parents"].int()}, T, "parents", "int64", "int32"),
        ("parents of another n", a_, lambda a: {"parents": zeros(2, 6)}, V, "parents", "shape [2, 7]", "[2, 6]"),
        ("parents strided", a_, lambda a: {"parents": spread(a["parents"])}, V, "parents", FLAT, "strides [14, 2]"),
        ("chosen int32", a_, lambda a: {"chosen": a["chosen"].int()}, T, "chosen", "int64", "int32"),
        ("chosen of another B", a_, lambda a: {"chosen": zeros(1, 7)}, V, "chosen", "shape [2, 7]", "[1, 7]"),
        ("chosen strided", a_, lambda a: {"chosen": spread(a["chosen"])}, V, "chosen", FLAT, "strides [14, 2]"),
        ("depth -1", a_, lambda a: {"depth": -1}, V, "depth", "at least 0", "-1"),
    ]  # fmt: skip


def accept_value_rows() -> list[Row]:
    nodes = "nodes in [0, 7) or -1"
    return [
        ("a parent out of range", accept_call, lambda a: {"parents": with_value(a["parents"], 8, 7)}, IndexError, "parents", nodes, "7 at flat position 8"),
    ]  # fmt: skip
