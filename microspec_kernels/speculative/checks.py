# SPDX-License-Identifier: Apache-2.0
"""Check the arguments of `generate` and `Batch`."""

import copy
import logging
from collections.abc import Sequence, Set

import torch
from torch import Tensor

from microspec_kernels._checks import MAX_TOP_K
from microspec_kernels._token_ids import token_ids
from microspec_kernels.policy import LearnedLists, Policy

from .heads import Head
from .models.draft import Draft
from .models.lm_head import LMHead, differ_in_padding
from .models.target import CausalModel

logger = logging.getLogger(__name__)


def checked_prompt(input_ids: Tensor, target: CausalModel, draft: Draft) -> Tensor:
    """Return the prompt, int64 [P] on the target's device, after checking dtype, shape and ids.

    Raises TypeError or ValueError; every id must be one that target and draft can read.
    """
    if not isinstance(input_ids, Tensor) or input_ids.dtype not in (torch.int32, torch.int64):
        got = getattr(input_ids, "dtype", type(input_ids).__name__)
        raise TypeError(f"generate: input_ids: expected an int64 or int32 tensor, got {got}")
    shape = tuple(input_ids.shape)
    if shape[:-1] not in ((), (1,)) or input_ids.numel() == 0:
        raise ValueError(
            f"generate: input_ids: expected shape [P] or [1, P] with P >= 1, got {list(shape)}"
        )
    prompt = input_ids.reshape(-1).to(device=target.device, dtype=torch.int64)
    low, high = int(prompt.min()), int(prompt.max())
    size = min(target.vocab_size, getattr(draft, "vocab_size", target.vocab_size))
    if low < 0 or high >= size:
        draft_s = "" if size == target.vocab_size else ", which the draft knows"
        raise ValueError(
            f"generate: input_ids: expected ids in [0, {size}){draft_s}, "
            f"got {low if low < 0 else high}"
        )
    return prompt


LIMITS = {
    "max_new_tokens": (0, None),
    "depth": (1, None),
    "tree_width": (1, MAX_TOP_K),
    "tree_size": (1, None),
    "capacity": (1, None),
    "num_groups": (1, None),
}


def check_counts(**counts: int) -> None:
    """Raise TypeError or ValueError unless every count is an int within its LIMITS."""
    for name, value in counts.items():
        low, high = LIMITS[name]
        if not isinstance(value, int):
            raise TypeError(f"generate: {name}: expected an int, got {type(value).__name__}")
        if value < low or (high is not None and value > high):
            limit = f">= {low}" if high is None else f"in [{low}, {high}]"
            raise ValueError(f"generate: {name}: expected {limit}, got {value}")


def checked_frequent_tokens(ids: Tensor | Sequence[int], target: CausalModel) -> Tensor:
    """Check token ids and return them, int64 [S] on the target's device, S >= 1."""
    frequent_tokens = token_ids(
        "generate: frequent_tokens", ids, target.vocab_size, device=target.device
    )
    if len(frequent_tokens) == 0:
        raise ValueError("generate: frequent_tokens: expected at least one token id, got none")
    return frequent_tokens


def fitted(draft: Draft, target: CausalModel) -> Draft:
    """Return the draft with an LM head over the target's vocabulary.

    If the vocabularies differ in padding rows only, the result is a copy of the draft whose LM head
    is `of_vocabulary`. Raises ValueError: another device or another vocabulary.
    """
    size, device = draft.lm_head.vocab_size, draft.lm_head.weight.device
    if device != target.device:
        raise ValueError(f"generate: draft: expected device {target.device}, got {device}")
    if size == target.vocab_size:
        return draft
    if not differ_in_padding(size, target.vocab_size):
        raise ValueError(
            "generate: draft: expected, apart from padding, the target's vocabulary of "
            f"{target.vocab_size}, got {size}"
        )
    logger.info(
        "draft: its %d tokens and the target's %d differ in padding only", size, target.vocab_size
    )
    draft = copy.copy(draft)
    draft.lm_head = draft.lm_head.of_vocabulary(target.vocab_size)
    return draft


def check_head(head: Head, target: CausalModel) -> None:
    """Check a `Head` object of the caller.

    Raises TypeError: the object has no `topk`. ValueError: it has an `lm_head` over another
    vocabulary than the target's.
    """
    if not hasattr(head, "topk"):
        raise TypeError(f"generate: head: expected a name or a Head, got {type(head).__name__}")
    lm_head = getattr(head, "lm_head", None)
    if isinstance(lm_head, LMHead) and lm_head.vocab_size != target.vocab_size:
        raise ValueError(
            f"generate: head: expected one of the target's vocabulary of {target.vocab_size} "
            f"(LMHead.of_vocabulary makes one), got {lm_head.vocab_size}"
        )


def check_learn(learn: bool | LearnedLists, learns: bool, policy: Policy | None) -> None:
    """Raise ValueError for lists that no head learns, or pinned tokens beside learning."""
    if not (learns or isinstance(learn, bool)):
        raise ValueError("generate: learn: expected head='sparse' beside lists, got another head")
    if learns and policy is not None and len(policy.pinned):
        raise ValueError(
            f"generate: learn: expected False beside the {len(policy.pinned)} pinned tokens of a "
            "policy"
        )


def check_length(target: CausalModel, length: int) -> None:
    """Raise ValueError if a text of `length` tokens exceeds the target's `longest`."""
    if target.longest is not None and length > target.longest:
        raise ValueError(
            "generate: max_new_tokens: this target's rotary embedding changes with the text's "
            f"length; expected prompt, new tokens and depth within {target.longest}, got {length}"
        )


def check_room(free: Sequence[int], num_groups: int) -> None:
    """Raise ValueError if none of the `num_groups` is free."""
    if not free:
        raise ValueError(
            f"generate: num_groups: expected at most {num_groups} requests, one a group, got "
            f"{num_groups + 1}"
        )


def check_seed(seed: int, others: Set[int]) -> None:
    """Raise ValueError if another text that the vocabulary has learned from has this seed.

    The numbers that draw a text's chains must not have changed the vocabulary before.
    """
    if seed in others:
        raise ValueError(
            "generate: seed: expected one each for sampled chains that share a vocabulary or "
            f"learned lists, got {seed} again"
        )
