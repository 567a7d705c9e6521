# SPDX-License-Identifier: Apache-2.0
"""The ops with Python's built-in error types, and their fakes for ``torch.compile``.

Each function calls ``torch.ops.microspec.<name>``. Engines may also call the op directly: it raises
``RuntimeError`` with the same text, and takes hidden [M, D] only. The functions take [..., D].
"""

import torch

from .. import _library, _registrations
from .gather import gather_rows_
from .head import sparse_head, sparse_logits
from .observe import vocab_observe_
from .sample import sparse_sample
from .tree import tree_accept, tree_cut, tree_grow_
from .vocab import vocab_count_, vocab_refill_, vocab_update_

__all__ = [
    "gather_rows_",
    "sparse_head",
    "sparse_logits",
    "sparse_sample",
    "tree_accept",
    "tree_cut",
    "tree_grow_",
    "vocab_count_",
    "vocab_observe_",
    "vocab_refill_",
    "vocab_update_",
]

_library.load()  # every schema is registered from here on
_registrations.register()

for _function in (
    sparse_head,
    sparse_logits,
    sparse_sample,
    gather_rows_,
    vocab_update_,
    vocab_count_,
    vocab_observe_,
    vocab_refill_,
    tree_grow_,
    tree_cut,
    tree_accept,
):
    getattr(torch.ops.microspec, _function.__name__).__doc__ = _function.__doc__  # for help()
