# SPDX-License-Identifier: Apache-2.0
"""Vocabulary policies: rules that decide which tokens the draft may propose.

A policy is a short list of sources, together with the tokens that a vocabulary begins with. After
every pass of the target, it selects the tokens that enter the active vocabulary:

    from microspec_kernels import ActiveVocab
    from microspec_kernels.policy import TargetPass, default

    policy = default(frequent_tokens)
    vocab = ActiveVocab(
        vocab_size,
        3072,
        frequent_tokens=policy.frequent_tokens,
        pinned=policy.pinned,
        device=lm_head.device,
    )
    vocab.update(policy.select(TargetPass("step", tree_tokens, top_tokens, chosen)))

The same policy runs in the speculative loop, over recorded traces (:mod:`..replay`), and in an
engine's CUDA graph: :meth:`Policy.select` never reads a value back to the host.
"""

from .capacity import Choice, StepCosts, choose_capacity, explain
from .defaults import (
    CAPACITY,
    FLOOR_SHARE,
    NUM_LISTS,
    PROMPT_SHARE,
    TARGET_TOP_K,
    TEXTS_PER_FLOOR,
)
from .frequent_tokens import count_frequent_tokens
from .learned_file import LearnedFile, tokenizer_fingerprint
from .learned_lists import LearnedLists
from .learned_vocab import LearnedVocab
from .policy import Policy, PromptRows, Source, Stage, TargetPass
from .prior import prior_of_tokenizer
from .sources import (
    FILLED,
    MICROSPEC,
    TEXT,
    default,
    draft_tree,
    generated,
    prompt,
    prompt_top_k,
    target_top_k,
)

__all__ = [
    "CAPACITY",
    "FILLED",
    "FLOOR_SHARE",
    "MICROSPEC",
    "NUM_LISTS",
    "PROMPT_SHARE",
    "TARGET_TOP_K",
    "TEXT",
    "TEXTS_PER_FLOOR",
    "Choice",
    "LearnedFile",
    "LearnedLists",
    "LearnedVocab",
    "Policy",
    "PromptRows",
    "Source",
    "Stage",
    "StepCosts",
    "TargetPass",
    "choose_capacity",
    "count_frequent_tokens",
    "default",
    "draft_tree",
    "explain",
    "generated",
    "prior_of_tokenizer",
    "prompt",
    "prompt_top_k",
    "target_top_k",
    "tokenizer_fingerprint",
]
