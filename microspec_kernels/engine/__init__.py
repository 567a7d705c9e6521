# SPDX-License-Identifier: Apache-2.0
"""The draft's LM head over an active vocabulary, for an inference engine or its plugin.

    from microspec_kernels import EngineHead, Settings

    head = EngineHead(draft.lm_head.weight, Settings(capacity=3072))  # attach, before capture
    head.begin([0], [prompt])                                         # eager, as observe
    tokens = head.argmax(hidden)                                      # captured
    head.observe(accepted)                                            # between replays

docs/engines.md explains the steps.
"""

from .dense_steps import DenseSteps
from .head import EngineHead
from .settings import SWITCH, Settings
from .shard import Shard
from .stats import EngineStats
from .token_map import TokenMap

__all__ = [
    "SWITCH",
    "DenseSteps",
    "EngineHead",
    "EngineStats",
    "Settings",
    "Shard",
    "TokenMap",
]
