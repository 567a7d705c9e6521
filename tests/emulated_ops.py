# SPDX-License-Identifier: Apache-2.0
"""``torch.ops.microspec.*`` over the emulation: checks, numpy views, outputs of a sentinel.

Like on CUDA, ids out of range are not an error.
"""

from typing import Any

import numpy as np
import torch
from emulated import load
from torch import Tensor

from microspec_kernels import _checks

SENTINEL = 7.5e33  # fills outputs, to show elements that an op does not write


def as_array(value: Any) -> Any:
    """View a tensor's memory as an array; bf16 as uint16, fp8 as uint8, int4 as void, e2m1 as S."""
    if not isinstance(value, Tensor):
        return value
    if value.dtype == torch.bfloat16:
        return value.view(torch.int16).numpy().view(np.uint16)
    if value.dtype == torch.float8_e4m3fn:
        return value.view(torch.uint8).numpy()
    if value.dtype == torch.uint8:
        return value.numpy().view("V1")
    if value.dtype == torch.float4_e2m1fn_x2:
        return value.view(torch.uint8).numpy().view("S1")
    return value.numpy()


def call(op: str, *tensors: Any, **options: Any) -> None:
    emulation = load()
    everything = [*tensors, *options.values()]
    rows = [t for t in everything if isinstance(t, Tensor)]
    e2m1 = any(t.dtype == torch.float4_e2m1fn_x2 for t in rows)  # its e4m3 scales need no sm_89
    if not e2m1 and any(t.dtype == torch.float8_e4m3fn for t in rows):
        emulation.configure(arch=max(emulation.arch(), 890))  # has e4m3
    arrays = {name: as_array(value) for name, value in options.items()}
    getattr(emulation, op)(*map(as_array, tensors), **arrays)


def check_head(
    op: str, hidden: Tensor, weight: Tensor, ids: Tensor, options: dict[str, Any], k: int | None
) -> None:
    packed, group_ids = options.get("packed", False), options.get("group_ids")
    scale, bias = options.get("weight_scale"), options.get("bias")
    factors = options.get("logit_scale", 1.0), options.get("softcap", 0.0)
    _checks.head(op, hidden, weight, ids, packed, group_ids, scale, bias, *factors, k)


def sparse_head(
    hidden: Tensor, weight: Tensor, active_ids: Tensor, k: int, **options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    check_head("sparse_head", hidden, weight, active_ids, options, k)
    logits = torch.full((len(hidden), k), SENTINEL)
    token_ids = torch.full((len(hidden), k), -77)
    logsumexp = torch.full((len(hidden),), SENTINEL)
    results = (logits, token_ids, logsumexp)
    call("sparse_head", *results, hidden, weight, active_ids, k, **options)
    return results


def sparse_logits(hidden: Tensor, weight: Tensor, active_ids: Tensor, **options: Any) -> Tensor:
    check_head("sparse_logits", hidden, weight, active_ids, options, None)
    logits = torch.full((len(hidden), active_ids.size(-1)), SENTINEL)
    call("sparse_logits", logits, hidden, weight, active_ids, **options)
    return logits


def check_sample(*operands: Tensor, **options: Any) -> tuple[_checks.Checker, int]:
    """Check the arguments of sparse_sample, with its defaults."""
    default = {"packed": False, "logit_scale": 1.0, "softcap": 0.0}
    absent = ("group_ids", "weight_scale", "bias", "row_tokens", "token_logits", "logit_rows")
    return _checks.sample(*operands, **{**dict.fromkeys(absent), **default, **options})


def sparse_sample(hidden: Tensor, *operands: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    check_sample(hidden, *operands, **options)
    tokens = torch.full((len(hidden),), -77)
    log_probs = torch.full((len(hidden),), SENTINEL)
    call("sparse_sample", tokens, log_probs, hidden, *operands, **options)
    return tokens, log_probs


def gather_rows_(
    slab: Tensor,
    slab_ids: Tensor,
    weight: Tensor,
    active_ids: Tensor,
    *,
    slab_scale: Tensor | None = None,
    weight_scale: Tensor | None = None,
) -> None:
    _checks.gather(slab, slab_ids, weight, active_ids, slab_scale, weight_scale)
    scales = {"slab_scale": slab_scale, "weight_scale": weight_scale}
    call("gather_rows_", slab, slab_ids, weight, active_ids, **scales)


def vocab_update_(
    active_ids: Tensor,
    slot_stamps: Tensor,
    token_slots: Tensor,
    clock: Tensor,
    tokens: Tensor,
    *,
    token_groups: Tensor | None = None,
) -> None:
    state = (active_ids, slot_stamps, token_slots, clock)
    _checks.vocab(*state, tokens, token_groups)
    call("vocab_update_", *state, tokens, token_groups=token_groups)


def vocab_count_(
    text_counts: Tensor,
    seen: Tensor,
    tokens: Tensor,
    *,
    token_requests: Tensor | None = None,
    request_lists: Tensor | None = None,
    total_counts: Tensor | None = None,
) -> None:
    options = {
        "token_requests": token_requests,
        "request_lists": request_lists,
        "total_counts": total_counts,
    }
    _checks.vocab_count(text_counts, seen, tokens, *options.values())
    call("vocab_count_", text_counts, seen, tokens, **options)


def vocab_observe_(
    active_ids: Tensor,
    slot_stamps: Tensor,
    token_slots: Tensor,
    clock: Tensor,
    tokens: Tensor,
    *,
    lengths: Tensor | None = None,
    candidates: Tensor | None = None,
    token_rows: Tensor | None = None,
    token_groups: Tensor | None = None,
    token_requests: Tensor | None = None,
    tally: Tensor | None = None,
    num_lists: int = 0,
) -> None:
    state = (active_ids, slot_stamps, token_slots, clock)
    options = {
        "lengths": lengths,
        "candidates": candidates,
        "token_rows": token_rows,
        "token_groups": token_groups,
        "token_requests": token_requests,
        "tally": tally,
        "num_lists": num_lists,
    }
    _checks.vocab_observe(*state, tokens, **options)
    call("vocab_observe_", *state, tokens, **options)


def vocab_refill_(
    active_ids: Tensor,
    slot_stamps: Tensor,
    token_slots: Tensor,
    clock: Tensor,
    text_counts: Tensor,
    token_ranks: Tensor,
    group_lists: Tensor,
    *,
    total_counts: Tensor | None = None,
    pinned: int = 0,
    reset: bool = True,
) -> None:
    state = (active_ids, slot_stamps, token_slots, clock)
    read = (text_counts, token_ranks, group_lists)
    _checks.vocab_refill(*state, *read, total_counts, pinned)
    options = {"total_counts": total_counts, "pinned": pinned, "reset": reset}
    call("vocab_refill_", *state, *read, **options)


def integers(*shape: int) -> Tensor:
    return torch.full(shape, -77)


def arguments_of(op: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return results of a sentinel and then the arguments, as the emulation takes them."""
    given = dict(arguments)
    if op == "tree_grow_":
        sizes = given["pool_costs"], given["logits"], given["width"], given["frontier"]
        results = grow_results(*sizes)
    elif op == "tree_cut":
        results = cut_results(given["pool_costs"], given["size"])
    else:
        results = accept_results(given["tokens"], given["depth"])
    return {**{f"result {i}": result for i, result in enumerate(results)}, **given}


def grow_results(
    costs: Tensor, logits: Tensor, width: int, frontier: Tensor | None
) -> tuple[Tensor, ...]:
    candidates = (1 if frontier is None else frontier.size(1)) * logits.size(1)
    return tuple(integers(len(costs), min(width, candidates)) for _ in range(3))


def cut_results(costs: Tensor, size: int) -> tuple[Tensor, ...]:
    texts, nodes = len(costs), min(size, costs.size(1)) + 1
    mask = torch.ones(texts, nodes, nodes, dtype=torch.bool)
    return (*(integers(texts, nodes) for _ in range(3)), mask)


def accept_results(tokens: Tensor, depth: int) -> tuple[Tensor, ...]:
    texts, nodes = tokens.shape
    path = (texts, min(depth, nodes - 1) + 1)
    return tuple(integers(*shape) for shape in (path, path, (texts, nodes), (texts,), (texts,)))


def tree_grow_(
    pool_tokens: Tensor,
    pool_parents: Tensor,
    pool_costs: Tensor,
    logits: Tensor,
    token_ids: Tensor,
    logsumexp: Tensor,
    width: int,
    *,
    begin: int = 0,
    frontier: Tensor | None = None,
) -> tuple[Tensor, ...]:
    pool = (pool_tokens, pool_parents, pool_costs)
    level = (logits, token_ids, logsumexp)
    _checks.tree_grow(*pool, *level, width, begin, frontier)
    results = grow_results(pool_costs, logits, width, frontier)
    call("tree_grow_", *results, *pool, *level, width, begin=begin, frontier=frontier)
    return results


def tree_cut(
    roots: Tensor, pool_tokens: Tensor, pool_parents: Tensor, pool_costs: Tensor, size: int
) -> tuple[Tensor, ...]:
    arguments = (roots, pool_tokens, pool_parents, pool_costs, size)
    _checks.tree_cut(*arguments)
    results = cut_results(pool_costs, size)
    call("tree_cut", *results, *arguments)
    return results


def tree_accept(tokens: Tensor, parents: Tensor, chosen: Tensor, depth: int) -> tuple[Tensor, ...]:
    _checks.tree_accept(tokens, parents, chosen, depth)
    results = accept_results(tokens, depth)
    call("tree_accept", *results, tokens, parents, chosen, depth)
    return results
