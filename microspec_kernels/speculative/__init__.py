# SPDX-License-Identifier: Apache-2.0
"""The reference speculative loop: target, draft, draft tree, and three LM heads to compare.

    from microspec_kernels.speculative import generate, load_draft, load_target

    target = load_target("path/or/hub-name")
    draft = load_draft("path/or/hub-name", target)
    result = generate(target, draft, input_ids, 256, head="sparse", timed=True)
    result.tokens, result.stats.tau, result.stats.seconds["head"]

Models come from `transformers`: `pip install 'microspec-kernels[speculative]'`.
"""

from .batch import Batch
from .checkpoints.load import load_draft, load_target
from .heads import Dense, Head, Sparse, Static
from .learning import learned_lists
from .loop import generate
from .models.draft import Draft, ModelDraft
from .models.eagle import EagleDraft
from .models.eagle3 import Eagle3Draft
from .models.lm_head import LMHead
from .models.mtp import MtpDraft
from .models.target import CausalModel
from .request import Request
from .sampling import Sampling
from .stats import Generation, Stats
from .timeline import Timeline

__all__ = [
    "Batch",
    "CausalModel",
    "Dense",
    "Draft",
    "Eagle3Draft",
    "EagleDraft",
    "Generation",
    "Head",
    "LMHead",
    "ModelDraft",
    "MtpDraft",
    "Request",
    "Sampling",
    "Sparse",
    "Static",
    "Stats",
    "Timeline",
    "generate",
    "learned_lists",
    "load_draft",
    "load_target",
]
