"""The reference speculative loop: a target, a draft, a tree, and the three heads to compare.

    from microspec_kernels.speculative import generate, load_draft, load_target

    target = load_target("path/or/hub-name")
    draft = load_draft("path/or/hub-name", target)
    result = generate(target, draft, input_ids, 256, head="sparse")
    result.tokens, result.stats.tau, result.stats.seconds["head"]

Models come from `transformers`: `pip install 'microspec-kernels[speculative]'`.
"""

from .checkpoint import load_draft, load_target
from .draft import Draft, EagleDraft, ModelDraft
from .heads import Dense, Head, Sparse, Static
from .loop import generate
from .model import CausalModel
from .sources import SOURCES, Seen, Source
from .stats import Generation, Stats

__all__ = [
    "SOURCES",
    "CausalModel",
    "Dense",
    "Draft",
    "EagleDraft",
    "Generation",
    "Head",
    "ModelDraft",
    "Seen",
    "Source",
    "Sparse",
    "Static",
    "Stats",
    "generate",
    "load_draft",
    "load_target",
]
