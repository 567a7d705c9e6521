# SPDX-License-Identifier: Apache-2.0
"""Which variant of the CUDA head, and which mode of it, is the fastest?

    python -m bench.tuning.kernel_variants build   a library for each variant; needs nvcc, no GPU
    python -m bench.tuning.kernel_variants run     times them; also: indexed or packed?
    python -m bench.tuning.slab_in_l2              does it pay to hold the slab in the L2 cache?

pick_fastest.py decides between variants, indexed_or_packed.py between modes; l2_window.py sets
cache aside.
"""
