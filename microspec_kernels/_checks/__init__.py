# SPDX-License-Identifier: Apache-2.0
"""Argument checks of every op, for the code in Python: fakes, reference and Triton.

The checks mirror ``csrc/binding/check.h`` and ``csrc/*/*_op.cpp``, including the messages; a test
compares the two. They read only shapes, dtypes, strides and devices, so they also work on fake
tensors. ``ids``, ``head_ids`` and ``disjoint`` are the exceptions: they read values or addresses.

``head``, ``sample``, ``gather`` and ``vocab`` are the functions here, not the files of these names.
"""

from .checker import Checker
from .dtypes import (
    E2M1,
    E2M1_GROUP,
    FLOATS,
    FOUR_BIT,
    INT4,
    INT4_GROUP,
    QUANTISED,
    dtype_name,
)
from .gather import gather
from .head import MAX_TOP_K, head, head_ids
from .observe import vocab_observe
from .sample import sample
from .tree import tree_accept, tree_cut, tree_grow
from .vocab import EMPTY_STAMP, PINNED_STAMP, vocab, vocab_count, vocab_refill

__all__ = [
    "E2M1",
    "E2M1_GROUP",
    "EMPTY_STAMP",
    "FLOATS",
    "FOUR_BIT",
    "INT4",
    "INT4_GROUP",
    "MAX_TOP_K",
    "PINNED_STAMP",
    "QUANTISED",
    "Checker",
    "dtype_name",
    "gather",
    "head",
    "head_ids",
    "sample",
    "tree_accept",
    "tree_cut",
    "tree_grow",
    "vocab",
    "vocab_count",
    "vocab_observe",
    "vocab_refill",
]
