# SPDX-License-Identifier: Apache-2.0
"""Kernels for speculative decoding with a small active vocabulary in the draft's LM head."""

from . import policy
from ._version import __version__
from .backends import backend
from .coverage import Coverage
from .engine import EngineHead, Settings
from .head import SparseHead, SparseLMHead
from .ops import (
    gather_rows_,
    sparse_head,
    sparse_logits,
    sparse_sample,
    tree_accept,
    tree_cut,
    tree_grow_,
    vocab_count_,
    vocab_observe_,
    vocab_refill_,
    vocab_update_,
)
from .parallel import parallel_sparse_head
from .slab import SlabView, WeightSlab
from .tally import Tally
from .vocab import ActiveVocab

__all__ = [
    "ActiveVocab",
    "Coverage",
    "EngineHead",
    "Settings",
    "SlabView",
    "SparseHead",
    "SparseLMHead",
    "Tally",
    "WeightSlab",
    "__version__",
    "backend",
    "gather_rows_",
    "parallel_sparse_head",
    "policy",
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
