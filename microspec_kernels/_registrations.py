# SPDX-License-Identifier: Apache-2.0
"""What PyTorch needs of the ops beside kernels: fake results, and errors for lazy views."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import _checks

WRITING = (
    "sparse_sample",
    "gather_rows_",
    "vocab_update_",
    "vocab_count_",
    "vocab_observe_",
    "vocab_refill_",
    "tree_grow_",
)
"""The ops that write to an argument."""

_library: torch.library.Library | None = None  # holds its registrations as long as it lives


def register() -> None:
    """Register all of it. Call once, when the library has registered the schemas."""
    global _library
    _library = torch.library.Library("microspec", "IMPL")
    for op in WRITING:
        for key in ("Negative", "Conjugate"):
            _library.impl(op, _refuse_lazy_views(op), key)
    for op, fake in FAKES.items():
        torch.library.register_fake(f"microspec::{op}", fake)


def _refuse_lazy_views(op: str) -> Callable[..., None]:
    """Make a kernel that raises an error for a negated or conjugated argument, by name.

    PyTorch's fallback fails when an optional argument is absent. Ops that write to no argument
    need no such kernel: the fallback resolves the view for them.
    """
    names = [a.name for a in getattr(torch.ops.microspec, op).default._schema.arguments]

    def refuse(*positional: Any, **named: Any) -> None:
        for name, value in (*zip(names, positional, strict=False), *named.items()):
            for method, view in (("is_neg", "negated"), ("is_conj", "conjugated")):
                if isinstance(value, Tensor) and getattr(value, method)():
                    raise ValueError(
                        f"microspec::{op}: {name}: expected a tensor without a pending sign, got "
                        f"a {view} view"
                    )

    return refuse


def _sparse_head(  # type: ignore[no-untyped-def]
    hidden,
    weight,
    active_ids,
    k,
    *,
    packed=False,
    group_ids=None,
    weight_scale=None,
    bias=None,
    logit_scale=1.0,
    softcap=0.0,
):
    _checks.head(
        "sparse_head", hidden, weight, active_ids, packed, group_ids, weight_scale, bias,
        logit_scale, softcap, k,
    )  # fmt: skip
    shape = (hidden.size(0), k)
    return (
        hidden.new_empty(shape, dtype=torch.float32),
        hidden.new_empty(shape, dtype=torch.int64),
        hidden.new_empty(shape[:1], dtype=torch.float32),
    )


def _sparse_logits(  # type: ignore[no-untyped-def]
    hidden,
    weight,
    active_ids,
    *,
    packed=False,
    group_ids=None,
    weight_scale=None,
    bias=None,
    logit_scale=1.0,
    softcap=0.0,
):
    _checks.head(
        "sparse_logits", hidden, weight, active_ids, packed, group_ids, weight_scale, bias,
        logit_scale, softcap,
    )  # fmt: skip
    return hidden.new_empty((hidden.size(0), active_ids.size(-1)), dtype=torch.float32)


def _sparse_sample(  # type: ignore[no-untyped-def]
    hidden,
    weight,
    active_ids,
    temperatures,
    seeds,
    positions,
    *,
    packed=False,
    group_ids=None,
    weight_scale=None,
    bias=None,
    logit_scale=1.0,
    softcap=0.0,
    row_tokens=None,
    token_logits=None,
    logit_rows=None,
):
    _checks.sample(
        hidden, weight, active_ids, temperatures, seeds, positions, packed, group_ids,
        weight_scale, bias, logit_scale, softcap, row_tokens, token_logits, logit_rows,
    )  # fmt: skip
    shape = hidden.shape[:1]
    return (
        hidden.new_empty(shape, dtype=torch.int64),
        hidden.new_empty(shape, dtype=torch.float32),
    )


def _gather_rows_(slab, slab_ids, weight, active_ids, *, slab_scale=None, weight_scale=None):  # type: ignore[no-untyped-def]
    _checks.gather(slab, slab_ids, weight, active_ids, slab_scale, weight_scale)


def _vocab_update_(active_ids, slot_stamps, token_slots, clock, tokens, *, token_groups=None):  # type: ignore[no-untyped-def]
    _checks.vocab(active_ids, slot_stamps, token_slots, clock, tokens, token_groups)


def _vocab_count_(  # type: ignore[no-untyped-def]
    text_counts, seen, tokens, *, token_requests=None, request_lists=None, total_counts=None
):
    _checks.vocab_count(text_counts, seen, tokens, token_requests, request_lists, total_counts)


def _vocab_observe_(  # type: ignore[no-untyped-def]
    active_ids,
    slot_stamps,
    token_slots,
    clock,
    tokens,
    *,
    lengths=None,
    candidates=None,
    token_rows=None,
    token_groups=None,
    token_requests=None,
    tally=None,
    num_lists=0,
):
    _checks.vocab_observe(
        active_ids, slot_stamps, token_slots, clock, tokens, lengths, candidates, token_rows,
        token_groups, token_requests, tally, num_lists,
    )  # fmt: skip


def _vocab_refill_(  # type: ignore[no-untyped-def]
    active_ids,
    slot_stamps,
    token_slots,
    clock,
    text_counts,
    token_ranks,
    group_lists,
    *,
    total_counts=None,
    pinned=0,
    reset=True,
):
    _checks.vocab_refill(
        active_ids, slot_stamps, token_slots, clock, text_counts, token_ranks, group_lists,
        total_counts, pinned,
    )  # fmt: skip


def _tree_grow_(  # type: ignore[no-untyped-def]
    pool_tokens,
    pool_parents,
    pool_costs,
    logits,
    token_ids,
    logsumexp,
    width,
    *,
    begin=0,
    frontier=None,
):
    _checks.tree_grow(
        pool_tokens, pool_parents, pool_costs, logits, token_ids, logsumexp, width, begin, frontier
    )
    frontier_width = 1 if frontier is None else frontier.size(1)
    shape = (pool_tokens.size(0), min(width, frontier_width * logits.size(1)))
    return tuple(pool_tokens.new_empty(shape) for _ in range(3))


def _tree_cut(roots, pool_tokens, pool_parents, pool_costs, size):  # type: ignore[no-untyped-def]
    _checks.tree_cut(roots, pool_tokens, pool_parents, pool_costs, size)
    texts, nodes = len(roots), min(size, pool_tokens.size(1)) + 1
    per_node = tuple(roots.new_empty((texts, nodes)) for _ in range(3))
    return *per_node, roots.new_empty((texts, nodes, nodes), dtype=torch.bool)


def _tree_accept(tokens, parents, chosen, depth):  # type: ignore[no-untyped-def]
    _checks.tree_accept(tokens, parents, chosen, depth)
    texts, nodes = tokens.shape
    path = (texts, min(depth, nodes - 1) + 1)
    shapes = (path, path, (texts, nodes), (texts,), (texts,))
    return tuple(tokens.new_empty(shape) for shape in shapes)


FAKES: dict[str, Callable[..., object]] = {
    "sparse_head": _sparse_head,
    "sparse_logits": _sparse_logits,
    "sparse_sample": _sparse_sample,
    "gather_rows_": _gather_rows_,
    "vocab_update_": _vocab_update_,
    "vocab_count_": _vocab_count_,
    "vocab_observe_": _vocab_observe_,
    "vocab_refill_": _vocab_refill_,
    "tree_grow_": _tree_grow_,
    "tree_cut": _tree_cut,
    "tree_accept": _tree_accept,
}
