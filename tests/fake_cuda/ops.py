# SPDX-License-Identifier: Apache-2.0
"""The package's ops on the pretended device: CPU kernels with the rules of the CUDA kernels."""

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .memory import is_pinned, on_cuda, storage_of

ARGUMENTS = {
    "sparse_head": ("hidden", "weight", "active_ids", "k"),
    "sparse_logits": ("hidden", "weight", "active_ids"),
    "sparse_sample": (
        *("hidden", "weight", "active_ids"),
        *("temperatures", "seeds", "positions"),
    ),
    "gather_rows_": ("slab", "slab_ids", "weight", "active_ids"),
    "vocab_update_": ("active_ids", "slot_stamps", "token_slots", "clock", "tokens"),
    "vocab_count_": ("text_counts", "seen", "tokens"),
    "vocab_observe_": ("active_ids", "slot_stamps", "token_slots", "clock", "tokens"),
    "vocab_refill_": (
        *("active_ids", "slot_stamps", "token_slots", "clock"),
        *("text_counts", "token_ranks", "group_lists"),
    ),
    "tree_grow_": (
        *("pool_tokens", "pool_parents", "pool_costs"),
        *("logits", "token_ids", "logsumexp", "width"),
    ),
    "tree_cut": ("roots", "pool_tokens", "pool_parents", "pool_costs", "size"),
    "tree_accept": ("tokens", "parents", "chosen", "depth"),
}
RETURN_NOTHING = {"gather_rows_", *(op for op in ARGUMENTS if op.startswith("vocab_"))}
ANY = 2**31 - 1  # of a slab's slot: its id is a name only


def writes_in_place(function: Callable[..., Any]) -> bool:
    """Return whether a function is an op of the package that returns nothing."""
    name = getattr(function, "__name__", "").partition(".")[0]
    return name in RETURN_NOTHING


def written(
    function: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]
) -> set[int]:
    """Return the storages that an op of the package writes to."""
    name = function.__name__.partition(".")[0]
    given = {**dict(zip(ARGUMENTS[name], arguments, strict=False)), **options}
    schema = getattr(torch.ops.microspec, name).default._schema
    mutable = [a.name for a in schema.arguments if a.alias_info and a.alias_info.is_write]
    storages = [storage_of(given[n]) for n in mutable if given.get(n) is not None]
    return {storage._cdata for storage in storages if storage is not None}


def prepared(
    function: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments for the CPU kernel; other functions than the ops keep theirs.

    Raises:
        ValueError, TypeError: what the op raises for its arguments, devices included.
    """
    name = getattr(function, "__name__", "").partition(".")[0]
    if name not in ARGUMENTS or "microspec" not in str(function):
        return arguments, options
    given = {**dict(zip(ARGUMENTS[name], arguments, strict=False)), **options}
    _check(name, given)
    if os.environ.get("MICROSPEC_VALIDATE") != "1":
        for argument, bound in _bounds(name, given).items():
            if given.get(argument) is not None:
                given[argument] = _without_bad(given[argument], bound)
    count = len(arguments)
    return tuple(given[n] for n in ARGUMENTS[name][:count]), {n: given[n] for n in options}


def _check(name: str, given: dict[str, Any]) -> None:
    from microspec_kernels import _checks

    scales = given.get("slab_scale"), given.get("weight_scale")
    if name == "gather_rows_":
        slab, held, weight, ids = (given[n] for n in ARGUMENTS[name])
        check = _checks.gather(slab, held, weight, ids, *scales)
        where = "a tensor on the slab's device or in pinned host memory"
        good = on_cuda(weight) or is_pinned(weight)
        check.value(good, "weight", where, "one on cpu that is not pinned")
    elif name == "vocab_update_":
        tensors = [given[n] for n in ARGUMENTS[name]]
        _checks.vocab(*tensors, given.get("token_groups"))
    elif name == "vocab_count_":
        tensors = [given[n] for n in ARGUMENTS[name]]
        options = ("token_requests", "request_lists", "total_counts")
        _checks.vocab_count(*tensors, *(given.get(n) for n in options))
    elif name == "vocab_observe_":
        tensors = [given[n] for n in ARGUMENTS[name]]
        options = ("lengths", "candidates", "token_rows", "token_groups", "token_requests", "tally")
        given_options = (given.get(name) for name in options)
        _checks.vocab_observe(*tensors, *given_options, given.get("num_lists", 0))
    elif name == "vocab_refill_":
        tensors = [given[n] for n in ARGUMENTS[name]]
        _checks.vocab_refill(*tensors, given.get("total_counts"), given.get("pinned", 0))
    elif name == "tree_grow_":
        tensors = [given[n] for n in ARGUMENTS[name]]
        _checks.tree_grow(*tensors, given.get("begin", 0), given.get("frontier"))
    elif name in ("tree_cut", "tree_accept"):
        getattr(_checks, name)(*(given[n] for n in ARGUMENTS[name]))
    elif name == "sparse_sample":
        _checks.sample(
            *(given[n] for n in ARGUMENTS[name]), given.get("packed", False),
            *(given.get(n) for n in ("group_ids", "weight_scale", "bias")),
            given.get("logit_scale", 1.0), given.get("softcap", 0.0),
            *(given.get(n) for n in ("row_tokens", "token_logits", "logit_rows")),
        )  # fmt: skip
    else:
        _checks.head(
            name, given["hidden"], given["weight"], given["active_ids"], given.get("packed", False),
            given.get("group_ids"), scales[1], given.get("bias"),
            given.get("logit_scale", 1.0), given.get("softcap", 0.0), given.get("k"),
        )  # fmt: skip


def _bounds(name: str, given: dict[str, Any]) -> dict[str, int]:
    """Return the number of valid values of each argument that holds ids or groups."""
    if name in ("vocab_update_", "vocab_observe_"):
        rows = given.get("token_rows")
        size = given["token_slots"].size(1) if rows is None else len(rows)
        return {"tokens": size, "candidates": size, "token_groups": len(given["clock"])}
    if name == "vocab_count_":
        return {}  # ignores them itself
    if name == "vocab_refill_":
        return {"group_lists": given["text_counts"].size(0)}
    if name == "tree_grow_":
        return {"frontier": given.get("begin", 0)}
    if name == "tree_cut":
        return {"pool_parents": given["pool_parents"].size(1)}
    if name == "tree_accept":
        return {"parents": given["parents"].size(1)}
    if name == "gather_rows_":
        return {"active_ids": given["weight"].size(0)}
    groups = torch.atleast_2d(given["active_ids"]).size(0)
    rows, bias = given["weight"].size(0), given.get("bias")
    named = rows if not given.get("packed") else ANY if bias is None else len(bias)
    bounds = {"active_ids": named, "group_ids": groups}
    if (logits := given.get("token_logits")) is not None:
        bounds["logit_rows"] = len(logits)
        bounds["active_ids"] = logits.size(1) if named == ANY else named
    if given.get("row_tokens") is not None:
        bounds["active_ids"] = len(given["row_tokens"])
    return bounds


def _without_bad(ids: Tensor, bound: int) -> Tensor:
    """Replace values out of range by -1, which counts as empty."""
    bad = (ids < 0) | (ids >= bound)
    return torch.where(bad, -1, ids) if bool((bad & (ids != -1)).any()) else ids
