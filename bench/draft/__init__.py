# SPDX-License-Identifier: Apache-2.0
"""What does a faster head save in a whole draft, from the accepted tokens to the tree?

    python -m bench.draft.step [--quick]

graph.py is the draft as one CUDA graph, heads.py the heads in it, timeline.py shows when each part
runs.
"""
