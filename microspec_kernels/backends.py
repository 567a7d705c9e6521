# SPDX-License-Identifier: Apache-2.0
"""Select the code behind ``torch.ops.microspec.*``: the compiled library, Triton or plain PyTorch.

The selection is made in PyTorch's dispatcher, so it also applies to engines that call the ops
directly.
"""

import importlib
import importlib.util
import os
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from . import _checks, _library, reference

NAMES = ("cpu", "cuda", "triton", "reference")
_library.load()
# Whether the library was built with nvcc. Read this before this module registers any kernel.
HAS_CUDA: bool = torch._C._dispatch_has_kernel_for_dispatch_key("microspec::sparse_head", "CUDA")

_current = "cuda" if HAS_CUDA and torch.cuda.is_available() else "cpu"
_override: list[torch.library.Library] = []


def _reference() -> ModuleType:
    return reference


@cache
def _triton() -> ModuleType:
    """Import the Triton kernels at the first call: the import takes a quarter of a second."""
    return importlib.import_module(".triton_kernels", __package__)


def _implementations(code: Callable[[], ModuleType]) -> dict[str, Callable[..., Any]]:
    """Return the ops of the module ``code()`` by name, each with checks of its arguments."""

    def reads_ids(tensor: Tensor) -> bool:
        """Return whether to check the values of ids.

        The reference needs valid ids. On a GPU, reading them would wait for the device, so the
        other backends check them there only if MICROSPEC_VALIDATE=1.
        """
        on_host = code is _reference or tensor.device.type == "cpu"
        return on_host or os.environ.get("MICROSPEC_VALIDATE") == "1"

    def note_writes(tensors: Mapping[str, Tensor | None]) -> None:
        """Increment the tensors' versions: an autograd graph that saved one raises an error."""
        torch.autograd.graph.increment_version([t for t in tensors.values() if t is not None])

    def check_head(
        op: str,
        hidden: Tensor,
        weight: Tensor,
        active_ids: Tensor,
        options: dict[str, Any],
        k: int | None = None,
    ) -> None:
        packed, group_ids = options.get("packed", False), options.get("group_ids")
        scale, bias = options.get("weight_scale"), options.get("bias")
        factors = options.get("logit_scale", 1.0), options.get("softcap", 0.0)
        _checks.head(op, hidden, weight, active_ids, packed, group_ids, scale, bias, *factors, k)
        if reads_ids(hidden):
            _checks.head_ids(op, hidden, weight, active_ids, packed, group_ids, bias)

    def sparse_head(
        hidden: Tensor, weight: Tensor, active_ids: Tensor, k: int, **options: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        check_head("sparse_head", hidden, weight, active_ids, options, k)
        result: tuple[Tensor, Tensor, Tensor] = code().sparse_head(
            hidden, weight, active_ids, k, **options
        )
        return result

    def sparse_logits(hidden: Tensor, weight: Tensor, active_ids: Tensor, **options: Any) -> Tensor:
        check_head("sparse_logits", hidden, weight, active_ids, options)
        result: Tensor = code().sparse_logits(hidden, weight, active_ids, **options)
        return result

    def sparse_sample(
        hidden: Tensor,
        weight: Tensor,
        active_ids: Tensor,
        temperatures: Tensor,
        seeds: Tensor,
        positions: Tensor,
        *,
        packed: bool = False,
        group_ids: Tensor | None = None,
        weight_scale: Tensor | None = None,
        bias: Tensor | None = None,
        logit_scale: float = 1.0,
        softcap: float = 0.0,
        row_tokens: Tensor | None = None,
        token_logits: Tensor | None = None,
        logit_rows: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        read: dict[str, Any] = {
            "hidden": hidden,
            "weight": weight,
            "active_ids": active_ids,
            "temperatures": temperatures,
            "seeds": seeds,
            "positions": positions,
        }
        tensors = {"group_ids": group_ids, "weight_scale": weight_scale, "bias": bias}
        tables = {"row_tokens": row_tokens, "token_logits": token_logits, "logit_rows": logit_rows}
        options: dict[str, Any] = {"packed": packed, **tensors}
        options |= {"logit_scale": logit_scale, "softcap": softcap, **tables}
        check, vocab_size = _checks.sample(*read.values(), **options)
        written = {"token_logits": token_logits}
        others = {"row_tokens": row_tokens, "logit_rows": logit_rows}
        check.disjoint(written, {**read, **tensors, **others})
        if reads_ids(hidden):
            check.ids(active_ids, "active_ids", vocab_size, "ids", "flat position")
            if group_ids is not None:
                num_groups = active_ids.size(0) if active_ids.dim() == 2 else 1
                check.ids(group_ids, "group_ids", num_groups, "groups", "position")
            if logit_rows is not None and token_logits is not None:
                check.ids(logit_rows, "logit_rows", token_logits.size(0), "rows", "position")
        note_writes(written)
        result: tuple[Tensor, Tensor] = code().sparse_sample(*read.values(), **options)
        return result

    def gather_rows_(
        slab: Tensor,
        slab_ids: Tensor,
        weight: Tensor,
        active_ids: Tensor,
        *,
        slab_scale: Tensor | None = None,
        weight_scale: Tensor | None = None,
    ) -> None:
        check = _checks.gather(slab, slab_ids, weight, active_ids, slab_scale, weight_scale)
        written = {"slab": slab, "slab_ids": slab_ids, "slab_scale": slab_scale}
        read = {"weight": weight, "active_ids": active_ids, "weight_scale": weight_scale}
        check.disjoint(written, read)
        if reads_ids(slab):
            check.ids(active_ids, "active_ids", weight.size(0), "ids", "flat position")
        note_writes(written)
        code().gather_rows_(
            slab, slab_ids, weight, active_ids, slab_scale=slab_scale, weight_scale=weight_scale
        )

    def vocab_update_(
        active_ids: Tensor,
        slot_stamps: Tensor,
        token_slots: Tensor,
        clock: Tensor,
        tokens: Tensor,
        *,
        token_groups: Tensor | None = None,
    ) -> None:
        check = _checks.vocab(active_ids, slot_stamps, token_slots, clock, tokens, token_groups)
        written = {
            "active_ids": active_ids,
            "slot_stamps": slot_stamps,
            "token_slots": token_slots,
            "clock": clock,
        }
        check.disjoint(written, {"tokens": tokens, "token_groups": token_groups})
        if reads_ids(active_ids):
            check.ids(tokens, "tokens", token_slots.size(1), "ids", "flat position")
            if token_groups is not None:
                check.ids(token_groups, "token_groups", len(clock), "groups", "position")
        note_writes(written)
        code().vocab_update_(
            active_ids, slot_stamps, token_slots, clock, tokens, token_groups=token_groups
        )

    def vocab_count_(
        text_counts: Tensor,
        seen: Tensor,
        tokens: Tensor,
        *,
        token_requests: Tensor | None = None,
        request_lists: Tensor | None = None,
        total_counts: Tensor | None = None,
    ) -> None:
        check = _checks.vocab_count(
            text_counts, seen, tokens, token_requests, request_lists, total_counts
        )
        written = {"text_counts": text_counts, "seen": seen, "total_counts": total_counts}
        read = {
            "tokens": tokens,
            "token_requests": token_requests,
            "request_lists": request_lists,
        }
        check.disjoint(written, read)
        note_writes(written)
        code().vocab_count_(
            text_counts,
            seen,
            tokens,
            token_requests=token_requests,
            request_lists=request_lists,
            total_counts=total_counts,
        )

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
        state = {
            "active_ids": active_ids,
            "slot_stamps": slot_stamps,
            "token_slots": token_slots,
            "clock": clock,
        }
        read = {
            "lengths": lengths,
            "candidates": candidates,
            "token_rows": token_rows,
            "token_groups": token_groups,
            "token_requests": token_requests,
        }
        options: dict[str, Any] = {**read, "tally": tally, "num_lists": num_lists}
        check = _checks.vocab_observe(
            active_ids, slot_stamps, token_slots, clock, tokens, **options
        )
        changed = {**state, "tally": tally}
        check.disjoint(changed, {"tokens": tokens, **read})
        if reads_ids(active_ids):
            bound = token_slots.size(1) if token_rows is None else len(token_rows)
            valid = reference.valid_tokens(tokens, lengths)
            check.ids(valid, "tokens", bound, "ids", "flat position")
            if candidates is not None:
                check.ids(candidates, "candidates", bound, "ids", "flat position")
            if token_groups is not None:
                check.ids(token_groups, "token_groups", len(clock), "groups", "position")
        note_writes(changed)
        code().vocab_observe_(*state.values(), tokens, **options)

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
        state = {
            "active_ids": active_ids,
            "slot_stamps": slot_stamps,
            "token_slots": token_slots,
            "clock": clock,
        }
        read = {"text_counts": text_counts, "token_ranks": token_ranks, "group_lists": group_lists}
        check = _checks.vocab_refill(**state, **read, total_counts=total_counts, pinned=pinned)
        check.disjoint(state, {**read, "total_counts": total_counts})
        if reads_ids(active_ids):
            check.ids(group_lists, "group_lists", text_counts.size(0), "lists", "position")
        note_writes(state)
        code().vocab_refill_(
            *state.values(), *read.values(), total_counts=total_counts, pinned=pinned, reset=reset
        )

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
    ) -> tuple[Tensor, Tensor, Tensor]:
        pool = {
            "pool_tokens": pool_tokens,
            "pool_parents": pool_parents,
            "pool_costs": pool_costs,
        }
        read = {"logits": logits, "token_ids": token_ids, "logsumexp": logsumexp}
        check = _checks.tree_grow(**pool, **read, width=width, begin=begin, frontier=frontier)
        check.disjoint(pool, {**read, "frontier": frontier})
        if frontier is not None and reads_ids(pool_tokens):
            check.ids(frontier, "frontier", begin, "places", "flat position")
        note_writes(pool)
        result: tuple[Tensor, Tensor, Tensor] = code().tree_grow_(
            *pool.values(), *read.values(), width, begin=begin, frontier=frontier
        )
        return result

    def tree_cut(
        roots: Tensor, pool_tokens: Tensor, pool_parents: Tensor, pool_costs: Tensor, size: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        arguments = roots, pool_tokens, pool_parents, pool_costs, size
        check = _checks.tree_cut(*arguments)
        if reads_ids(roots):
            places = pool_parents.size(1)
            check.ids(pool_parents, "pool_parents", places, "places", "flat position")
        result: tuple[Tensor, Tensor, Tensor, Tensor] = code().tree_cut(*arguments)
        return result

    def tree_accept(
        tokens: Tensor, parents: Tensor, chosen: Tensor, depth: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        check = _checks.tree_accept(tokens, parents, chosen, depth)
        if reads_ids(tokens):
            check.ids(parents, "parents", tokens.size(1), "nodes", "flat position")
        result: tuple[Tensor, Tensor, Tensor, Tensor, Tensor] = code().tree_accept(
            tokens, parents, chosen, depth
        )
        return result

    functions = (
        sparse_head,
        sparse_logits,
        sparse_sample,
        gather_rows_,
        vocab_update_,
        vocab_count_,
        vocab_observe_,
        vocab_refill_,
        tree_grow_,
        tree_cut,
        tree_accept,
    )
    return {function.__name__: function for function in functions}


def _register(key: str, code: Callable[[], ModuleType]) -> torch.library.Library:
    library = torch.library.Library("microspec", "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "Warning only once for all operators"
        )  # the override is intended
        for name, function in _implementations(code).items():
            library.impl(name, function, key, allow_override=True)
    return library


def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


# If the library has no CUDA kernels, Triton serves CUDA tensors (ROCm's too) if it is installed,
# else the reference does.
_cuda = None if HAS_CUDA else _register("CUDA", _triton if _has_triton() else _reference)


def backend(name: str | None = None) -> str:
    """Return the backend in use; with ``name``, switch to that backend first.

    Args:
        name: "cpu" or "cuda" selects the compiled library, which serves each tensor on its own
            device. This is the default. If the library was built without nvcc, Triton or else the
            reference serves CUDA tensors. "triton" or "reference" (plain PyTorch) serves tensors on
            every device. On a CPU, Triton needs its interpreter: set ``TRITON_INTERPRET=1`` before
            the first import. Otherwise the compiled library still serves CPU tensors.

    Raises:
        ValueError: no backend has that name, or the backend is not available here.
    """
    global _current
    if name is not None:
        if name not in NAMES:
            raise ValueError(f"backend: name: expected one of {', '.join(NAMES)}, got {name!r}")
        if name == "cuda" and not HAS_CUDA:
            raise ValueError("backend: cuda: the library was built without nvcc")
        if name == "triton" and not _has_triton():
            raise ValueError("backend: triton is not installed: `pip install triton`")
        while _override:
            _override.pop()._destroy()
        if name == "reference":
            _override.extend(_register(key, _reference) for key in ("CPU", "CUDA"))
        elif name == "triton":
            keys = ("CPU", "CUDA") if _triton().INTERPRETED else ("CUDA",)
            _override.extend(_register(key, _triton) for key in keys)
        _current = name
    return _current


def _read_environment() -> None:
    """Select the backend of MICROSPEC_BACKEND, and check the values of the library's variables.

    Raises:
        ValueError: a variable has an invalid value.
    """
    for variable in ("MICROSPEC_VALIDATE", "MICROSPEC_DEPENDENT_LAUNCH"):
        value = os.environ.get(variable)
        if value not in (None, "", "0", "1"):
            raise ValueError(f"microspec: {variable}: expected 0 or 1, got {value}")
    if name := os.environ.get("MICROSPEC_BACKEND"):
        try:
            backend(name)
        except ValueError as error:
            raise ValueError(f"microspec: MICROSPEC_BACKEND: {error}") from error


_read_environment()
