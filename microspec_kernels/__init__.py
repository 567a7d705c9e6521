"""Kernels for speculative decoding with a small active vocabulary in the draft's LM head."""

from importlib.metadata import PackageNotFoundError, version

from . import policy
from .backends import backend
from .coverage import Coverage
from .head import SparseHead, SparseLMHead
from .ops import gather_rows_, sparse_head, sparse_logits, vocab_update_
from .parallel import ParallelSparseHead, parallel_sparse_head
from .slab import SlabView, WeightSlab
from .vocab import ActiveVocab

try:
    __version__ = version("microspec-kernels")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+unknown"

__all__ = [
    "ActiveVocab",
    "Coverage",
    "ParallelSparseHead",
    "SlabView",
    "SparseHead",
    "SparseLMHead",
    "WeightSlab",
    "__version__",
    "backend",
    "gather_rows_",
    "parallel_sparse_head",
    "policy",
    "sparse_head",
    "sparse_logits",
    "vocab_update_",
]
