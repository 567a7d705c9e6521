# SPDX-License-Identifier: Apache-2.0
"""The ops ``torch.ops.microspec.*`` themselves, with static types for editors and mypy.

``torch_ops.sparse_head`` is ``torch.ops.microspec.sparse_head``. PyTorch makes the latter at run
time, so a type checker knows nothing of it. An op raises RuntimeError where the function of the
same name in :mod:`microspec_kernels` raises ValueError, TypeError or IndexError, and it takes
hidden [M, D] only.
"""

import torch

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

sparse_head = torch.ops.microspec.sparse_head
sparse_logits = torch.ops.microspec.sparse_logits
sparse_sample = torch.ops.microspec.sparse_sample
gather_rows_ = torch.ops.microspec.gather_rows_
vocab_update_ = torch.ops.microspec.vocab_update_
vocab_count_ = torch.ops.microspec.vocab_count_
vocab_observe_ = torch.ops.microspec.vocab_observe_
vocab_refill_ = torch.ops.microspec.vocab_refill_
tree_grow_ = torch.ops.microspec.tree_grow_
tree_cut = torch.ops.microspec.tree_cut
tree_accept = torch.ops.microspec.tree_accept
