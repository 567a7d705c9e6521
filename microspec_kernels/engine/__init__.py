# SPDX-License-Identifier: Apache-2.0
"""The draft's LM head over an active vocabulary, for an inference engine or its plugin.

    from microspec_kernels import EngineHead, Settings

    head = EngineHead(draft.lm_head.weight, Settings(capacity=3072))  # attach, before capture
    head.observe(tokens)                                              # eager, between replays
    tokens = head.argmax(hidden)                                      # captured

docs/engines.md explains the steps.
"""

from .head import EngineHead, EngineStats, Shard
from .settings import SWITCH, Settings
from .token_map import TokenMap

__all__ = [
    "SWITCH",
    "EngineHead",
    "EngineStats",
    "Settings",
    "Shard",
    "TokenMap",
]
