# SPDX-License-Identifier: Apache-2.0
"""Which tokens should be active?

    python -m bench.policy.traces TRACE.npz ... --frequent-tokens frequent.npy   on recorded text
    python -m bench.policy.pair                                on the demonstration pair's own text

data.py reads what traces.py takes.
"""
