# SPDX-License-Identifier: Apache-2.0
"""Which tokens should be active?

    python -m bench.policy.traces TRACE.npz ... --frequency-rank RANK.npy   on recorded text
    python -m bench.policy.pair                                on the demonstration pair's own text

data.py reads what traces.py takes.
"""
