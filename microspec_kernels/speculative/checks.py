"""What `generate` refuses, and how it says so."""

import torch
from torch import Tensor

from .draft import Draft
from .model import CausalModel
from .tree import TreeShape


def checked_prompt(input_ids: Tensor, target: CausalModel) -> Tensor:
    """The prompt, int64 [P] on the target's device."""
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
    if low < 0 or high >= target.vocab_size:
        raise ValueError(
            f"generate: input_ids: expected ids in [0, {target.vocab_size}), "
            f"got {low if low < 0 else high}"
        )
    return prompt


def check_counts(max_new_tokens: int, shape: TreeShape, capacity: int, pinned: int | None) -> None:
    """Every count is an int within its bounds."""
    bounds = {
        "max_new_tokens": (max_new_tokens, 0, None),
        "depth": (shape.depth, 1, None),
        "top_k": (shape.top_k, 1, 128),
        "tree_size": (shape.size, 1, None),
        "capacity": (capacity, 1, None),
        "pinned": (0 if pinned is None else pinned, 0, capacity),
    }
    for name, (value, low, high) in bounds.items():
        if not isinstance(value, int):
            raise TypeError(f"generate: {name}: expected an int, got {type(value).__name__}")
        if value < low or (high is not None and value > high):
            limit = f">= {low}" if high is None else f"in [{low}, {high}]"
            raise ValueError(f"generate: {name}: expected {limit}, got {value}")


def check_frequency(frequency: Tensor, vocab_size: int) -> None:
    """Distinct ids of the vocabulary, int [S]."""
    dtype = getattr(frequency, "dtype", type(frequency).__name__)
    if dtype not in (torch.int32, torch.int64) or frequency.dim() != 1:
        got = f"{dtype} {list(getattr(frequency, 'shape', ()))}"
        raise TypeError(f"generate: frequency: expected an int64 or int32 tensor [S], got {got}")
    ids = torch.unique(frequency)
    if len(ids) != len(frequency) or len(ids) == 0 or ids[0] < 0 or ids[-1] >= vocab_size:
        raise ValueError(
            f"generate: frequency: expected distinct ids in [0, {vocab_size}), got {len(ids)} "
            f"distinct of {len(frequency)}" + (f" in [{ids[0]}, {ids[-1]}]" if len(ids) else "")
        )


def check_fit(target: CausalModel, draft: Draft, length: int) -> None:
    """The draft speaks the target's vocabulary beside it, and `length` positions are in reach."""
    size, device = len(draft.head_weight), draft.head_weight.device
    if size != target.vocab_size:
        raise ValueError(
            f"generate: draft: expected the target's vocabulary of {target.vocab_size}, got {size}"
        )
    if device != target.device:
        raise ValueError(f"generate: draft: expected device {target.device}, got {device}")
    if target.longest is not None and length > target.longest:
        raise ValueError(
            "generate: max_new_tokens: this target's rotary embedding changes with the text's "
            f"length; expected prompt, new tokens and depth within {target.longest}, got {length}"
        )
