# SPDX-License-Identifier: Apache-2.0
"""Targets and drafts that the loop runs: models, LM heads and KV caches."""

from .cache import KVCache
from .draft import Draft, ModelDraft
from .eagle import EagleDraft
from .eagle3 import Eagle3Draft
from .lm_head import LMHead
from .mtp import MtpDraft
from .target import CausalModel

__all__ = [
    "CausalModel",
    "Draft",
    "Eagle3Draft",
    "EagleDraft",
    "KVCache",
    "LMHead",
    "ModelDraft",
    "MtpDraft",
]
