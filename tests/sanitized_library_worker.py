# SPDX-License-Identifier: Apache-2.0
"""Run the ops of an instrumented library on nonsense and on empty tensors.

test_sanitized_library.py starts this. A sanitizer's report ends the process. Every tensor is a
separate allocation, so that no byte of a tensor lies behind its last element.
"""

import itertools
import sys
from typing import Any

import torch
import tree_cases
from hypothesis import given, settings
from nonsense import State, calls, counts, observed, refills
from torch import Tensor


@settings(max_examples=1500, deadline=None, derandomize=True, database=None)
@given(call=calls())
def update(call: tuple[State, list[Tensor]]) -> None:
    state, batches = call
    tensors = state.tensors()
    for tokens in batches:
        torch.ops.microspec.vocab_update_(*tensors, tokens)
        flat, groups = tokens.flatten(), torch.arange(tokens.numel()) % (len(tokens) + 1) - 1
        torch.ops.microspec.vocab_update_(*tensors, flat, token_groups=groups)


@settings(max_examples=500, deadline=None, derandomize=True, database=None)
@given(call=refills())
def refill(call: tuple[State, list[Tensor], dict[str, Any]]) -> None:
    state, read, options = call
    torch.ops.microspec.vocab_refill_(*state.tensors(), *read, **options)


@settings(max_examples=500, deadline=None, derandomize=True, database=None)
@given(call=counts())
def count(call: tuple[list[Tensor], Tensor, dict[str, Tensor]]) -> None:
    (text_counts, seen, total_counts), tokens, options = call
    torch.ops.microspec.vocab_count_(
        text_counts, seen, tokens, **options, total_counts=total_counts
    )


@settings(max_examples=500, deadline=None, derandomize=True, database=None)
@given(call=observed())
def observe(call: tuple[State, Tensor, Tensor, dict[str, Any]]) -> None:
    state, tokens, tally, options = call
    ops = torch.ops.microspec
    ops.vocab_observe_(*state.tensors(), tokens, tally=tally, **options)
    if len(state.clock) == 1:  # ids as they lie
        ids = torch.arange(9) % (state.token_slots.size(1) + 1) - 1
        ops.vocab_observe_(
            *state.tensors(), ids, tally=tally, token_requests=ids, num_lists=options["num_lists"]
        )


def gather_and_project(
    m: int, dim: int, capacity: int, vocab_size: int, dtype: torch.dtype
) -> None:
    """Call the ops, also with no rows, no slots or no tokens."""
    rng = torch.Generator().manual_seed(0)
    weight = torch.randn(vocab_size, dim, generator=rng).to(dtype)
    hidden = torch.randn(m, dim, generator=rng).to(dtype)
    ids = torch.randint(-1, vocab_size, (capacity,), generator=rng, dtype=torch.int32)
    slab_ids = torch.randint(-(2**31), 2**31 - 1, (capacity,), generator=rng, dtype=torch.int32)
    ops = torch.ops.microspec
    for slab_dtype in (dtype, torch.int8, torch.float8_e4m3fn):
        slab = torch.zeros(capacity, dim).to(slab_dtype)
        scale = None if slab_dtype == dtype else torch.ones(capacity)
        ops.gather_rows_(slab, slab_ids.clone(), weight, ids, slab_scale=scale)
        ops.sparse_logits(hidden, slab, ids, packed=True, weight_scale=scale)
        ops.sparse_head(hidden, slab, ids, 3, packed=True, weight_scale=scale)
        row_scale = None if slab_dtype == dtype else torch.ones(vocab_size)
        ops.sparse_head(hidden, weight.to(slab_dtype), ids, 3, weight_scale=row_scale)
        if row_scale is not None:
            rows = weight.to(slab_dtype)
            other = slab_ids.clone()
            ops.gather_rows_(slab, other, rows, ids, slab_scale=scale, weight_scale=row_scale)


def trees() -> None:
    """Call the tree ops on sound pools, on others, and with no texts."""
    for sound in (True, False):
        for op, arguments in tree_cases.cases(sound=sound):
            getattr(torch.ops.microspec, op)(**arguments)
    torch.ops.microspec.tree_grow_(**tree_cases.grow_case(0, 0, 3, 4, 2))
    torch.ops.microspec.tree_cut(**tree_cases.cut_case(0, 0, 9, 4))
    torch.ops.microspec.tree_accept(**tree_cases.accept_case(0, 0, 5, 3))


def main() -> None:
    torch.ops.load_library(sys.argv[1])
    update()
    refill()
    count()
    observe()
    trees()
    floats = (torch.float32, torch.bfloat16, torch.float16)
    for m, dim, capacity, dtype in itertools.product((0, 1, 7), (0, 1, 33), (0, 1, 19), floats):
        gather_and_project(m, dim, capacity, 1 if dim == 33 else 40, dtype)
    print("done")


if __name__ == "__main__":
    main()
