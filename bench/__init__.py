"""Benchmarks. Run as modules from the checkout: ``python -m bench.head``."""

import os

# Before torch is imported: its large tensors then lie on 2 MB pages, as a serving process would
# have them. Rows of a 1 GB weight read in random order cost every arm a page walk each otherwise.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
