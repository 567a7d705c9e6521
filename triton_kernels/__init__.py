# SPDX-License-Identifier: Apache-2.0
"""The ops of :mod:`microspec_kernels.reference` as Triton kernels, one file per op.

Signatures and meaning are the same. Arguments are not checked (``microspec_kernels._checks`` has
the checks); ids outside [0, V) count as empty. The kernels run on CUDA and ROCm devices and, with
``TRITON_INTERPRET=1`` set before the import, on CPU tensors. No call waits for the device, and
a CUDA graph can capture each op. A head's first call of a kind tunes its kernel, which a capture
cannot: inside one, an untuned kernel's first configuration serves, and the log says so.

This package is imported only if Triton is installed; nothing else in the package needs it.
"""

from ..reference import observing
from .common import INTERPRETED
from .gather_rows import gather_rows_
from .sparse_head import sparse_head
from .sparse_logits import sparse_logits
from .sparse_sample import sparse_sample
from .tree_accept import tree_accept
from .tree_cut import tree_cut
from .tree_grow import tree_grow_
from .vocab_count import vocab_count_
from .vocab_refill import vocab_refill_
from .vocab_update import vocab_update_

vocab_observe_ = observing(vocab_count_, vocab_update_)

__all__ = [
    "INTERPRETED",
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
