"""Which code serves ``torch.ops.microspec.*``: the compiled library, or plain PyTorch.

The choice is made in the dispatcher, so engines that call the ops directly get it too.
"""

import os
import warnings
from typing import Any

import torch
from torch import Tensor

from . import _checks, reference

NATIVE = "cpu"
NAMES = (NATIVE, "reference")

_current = NATIVE
_override: torch.library.Library | None = None


def _sparse_head(
    hidden: Tensor, weight: Tensor, active_ids: Tensor, k: int, **options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    _check_head("sparse_head", hidden, weight, active_ids, options, k)
    return reference.sparse_head(hidden, weight, active_ids, k, **options)


def _sparse_logits(hidden: Tensor, weight: Tensor, active_ids: Tensor, **options: Any) -> Tensor:
    _check_head("sparse_logits", hidden, weight, active_ids, options)
    return reference.sparse_logits(hidden, weight, active_ids, **options)


def _check_head(
    op: str,
    hidden: Tensor,
    weight: Tensor,
    active_ids: Tensor,
    options: dict[str, Any],
    k: int | None = None,
) -> None:
    packed, group_ids = options.get("packed", False), options.get("group_ids")
    scale, bias = options.get("weight_scale"), options.get("bias")
    softcap = options.get("softcap", 0.0)
    _checks.head(op, hidden, weight, active_ids, packed, group_ids, scale, bias, softcap, k)
    _checks.head_ids(op, hidden, weight, active_ids, packed, group_ids, bias)


def _gather_rows_(
    slab: Tensor,
    slab_ids: Tensor,
    weight: Tensor,
    active_ids: Tensor,
    *,
    slab_scale: Tensor | None = None,
    weight_scale: Tensor | None = None,
) -> None:
    check = _checks.gather(slab, slab_ids, weight, active_ids, slab_scale, weight_scale)
    check.ids(active_ids, "active_ids", weight.size(0), "ids", "flat position")
    reference.gather_rows_(
        slab, slab_ids, weight, active_ids, slab_scale=slab_scale, weight_scale=weight_scale
    )


def _vocab_update_(
    active_ids: Tensor,
    slot_stamps: Tensor,
    token_slots: Tensor,
    clock: Tensor,
    tokens: Tensor,
    *,
    token_groups: Tensor | None = None,
) -> None:
    check = _checks.vocab(active_ids, slot_stamps, token_slots, clock, tokens, token_groups)
    check.ids(tokens, "tokens", token_slots.size(1), "ids", "flat position")
    if token_groups is not None:
        check.ids(token_groups, "token_groups", clock.size(0), "groups", "position")
    reference.vocab_update_(
        active_ids, slot_stamps, token_slots, clock, tokens, token_groups=token_groups
    )


_REFERENCE = {
    "sparse_head": _sparse_head,
    "sparse_logits": _sparse_logits,
    "gather_rows_": _gather_rows_,
    "vocab_update_": _vocab_update_,
}


def _register(key: str) -> torch.library.Library:
    library = torch.library.Library("microspec", "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "Warning only once for all operators"
        )  # we mean to override
        for name, function in _REFERENCE.items():
            library.impl(name, function, key, allow_override=True)
    return library


# The library has no CUDA kernels yet: tensors there are served by the reference.
_cuda = _register("CUDA")


def backend(name: str | None = None) -> str:
    """The backend in use; with ``name``, switch to it first.

    Args:
        name: "cpu" (compiled, vectorised; the default) or "reference" (plain PyTorch).

    Raises:
        ValueError: no backend has that name.
    """
    global _current, _override
    if name is not None:
        if name not in NAMES:
            raise ValueError(f"backend: name: expected one of {', '.join(NAMES)}, got {name!r}")
        if _override is not None:
            _override._destroy()
            _override = None
        if name == "reference":
            _override = _register("CPU")
        _current = name
    return _current


if os.environ.get("MICROSPEC_BACKEND"):
    backend(os.environ["MICROSPEC_BACKEND"])
