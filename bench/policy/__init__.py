# SPDX-License-Identifier: Apache-2.0
"""Which tokens should be active?

    python -m bench.policy.traces TRACE.npz ... --frequent-tokens frequent.npy   on recorded text
    python -m bench.policy.learned TRACE.npz ...               with lists that are learned from it
    python -m bench.policy.pair                                on the demonstration pair's own text
    python -m bench.policy.learned_pair                        the same, with learned lists

data.py reads what traces.py takes.
"""
