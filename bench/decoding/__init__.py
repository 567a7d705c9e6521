# SPDX-License-Identifier: Apache-2.0
"""What does the head save while text is generated?

    python -m bench.decoding.pair              from prompt to text, on the demonstration pair
    python -m bench.decoding.batches           a shared vocabulary, or one for each request?
    python -m bench.decoding.batches_head      the same, for the head alone at a real model's size
    python -m bench.decoding.slab_dtypes       does a slab of 4 bits draft as well?
    python -m bench.decoding.engine_overhead   what does observing cost an engine?

Each takes --quick.
"""
