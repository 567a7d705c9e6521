# SPDX-License-Identifier: Apache-2.0
"""How fast is each op, and what do other ways to do the same job take?

    python -m bench.ops.head             sparse_head against dense, static, NanoSpec and PyTorch
    python -m bench.ops.vocab            vocab_update_
    python -m bench.ops.gather           gather_rows_
    python -m bench.ops.tree             tree_grow_, tree_cut and tree_accept
    python -m bench.ops.int4_capacity    4-bit rows: four times the vocabulary for the same bytes?
    python -m bench.ops.compare_builds   all three on a GPU, also with several builds side by side

The head is timed by time_head.py; head_arms.py and head_peers.py make the ways to do its job.
"""
