# SPDX-License-Identifier: Apache-2.0
"""The definition of every op in plain PyTorch: slow and obvious. Tests compare the kernels with it.

The functions do not check their arguments (``_checks`` does). Shapes and dtypes are those of
:mod:`microspec_kernels.ops`. ``dtype`` lets a test compute the logits in float64.
"""

from .gather import gather_rows_
from .head import sparse_head, sparse_logits
from .indexing import by_group
from .observe import judge, observing, step_ids, valid_tokens, vocab_observe_
from .quantise import (
    E2M1_VALUES,
    LARGEST,
    LARGEST_INT4,
    dequantise_rows,
    e2m1_columns,
    int4_columns,
    quantise_int4,
    quantise_rows,
)
from .sample import DRAW_SALT, draw_number, draw_unit, philox4x32_10, sparse_sample
from .tree import tree_accept, tree_cut, tree_grow_
from .vocab import vocab_count_, vocab_refill_, vocab_update_

__all__ = [
    "DRAW_SALT",
    "E2M1_VALUES",
    "LARGEST",
    "LARGEST_INT4",
    "by_group",
    "dequantise_rows",
    "draw_number",
    "draw_unit",
    "e2m1_columns",
    "gather_rows_",
    "int4_columns",
    "judge",
    "observing",
    "philox4x32_10",
    "quantise_int4",
    "quantise_rows",
    "sparse_head",
    "sparse_logits",
    "sparse_sample",
    "step_ids",
    "tree_accept",
    "tree_cut",
    "tree_grow_",
    "valid_tokens",
    "vocab_count_",
    "vocab_observe_",
    "vocab_refill_",
    "vocab_update_",
]
