# SPDX-License-Identifier: Apache-2.0
"""Invalid input: ids out of range, memory of another kind, another device."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from compare import assert_bitwise
from generators import NAN, gather_case, head_case, row_indexed, vocab_state
from torch import Tensor
from tree_cases import cases

import microspec_kernels
from microspec_kernels import (
    ActiveVocab,
    Tally,
    WeightSlab,
    gather_rows_,
    sparse_head,
    sparse_logits,
    vocab_count_,
    vocab_observe_,
    vocab_refill_,
    vocab_update_,
)

ROOT = Path(__file__).resolve().parents[2]
BAD = (2147480000, -2, -(2**31), 2**31 - 1)


def there(value: object) -> object:
    return value.cuda() if isinstance(value, Tensor) else value


def spoilt(ids: Tensor, vocab_size: int) -> Tensor:
    """Replace every -1 by bad ids."""
    bad = torch.tensor([*BAD, vocab_size], dtype=torch.int32).repeat(ids.numel())[: ids.numel()]
    return torch.where(ids < 0, bad.view_as(ids), ids)


@pytest.mark.parametrize("m", [1, 4, 10, 60])
@pytest.mark.parametrize("packed", [False, True], ids=["indexed", "packed"])
def test_bad_ids_of_the_head_are_empty_slots(packed: bool, m: int) -> None:
    """All rows, scales and biases of other tokens than the active ones are NaN."""
    case = head_case(
        m, m=m, dim=256, vocab_size=300, capacity=200, active=120, num_groups=2, padding=True,
        dtype=torch.bfloat16, packed=packed, bias=torch.float32,
    )  # fmt: skip
    hidden, weight, ids = (t.cuda() for t in case.tensors())
    options = {name: there(value) for name, value in case.options().items()}
    bad_ids = spoilt(case.active_ids, 300).cuda()
    groups = case.group_ids
    assert groups is not None
    bad_groups = torch.where(
        groups < 0, torch.tensor([2, -7, 2**40, 2**32])[torch.arange(m) % 4], groups
    )
    bad = {**options, "group_ids": bad_groups.cuda()}
    calls = [(bad_ids, bad), (ids, options)]
    heads = [sparse_head(hidden, weight, active_ids, 9, **rest) for active_ids, rest in calls]
    logits = [sparse_logits(hidden, weight, active_ids, **rest) for active_ids, rest in calls]
    for got, want in zip((*heads[0], logits[0]), (*heads[1], logits[1]), strict=True):
        assert_bitwise(got, want)
        assert not got.isnan().any()


@pytest.mark.parametrize("slab_dtype", [torch.bfloat16, torch.int8, torch.float8_e4m3fn], ids=str)
def test_bad_ids_of_the_gather_have_no_row(slab_dtype: torch.dtype) -> None:
    case = gather_case(
        5, dim=256, vocab_size=300, capacity=200, num_groups=2, dtype=torch.bfloat16,
        slab_dtype=slab_dtype, same=0.3,
    )  # fmt: skip
    plain = {name: there(value) for name, value in case.copy().arguments().items()}
    bad = {name: there(value) for name, value in case.copy().arguments().items()}
    bad["active_ids"] = spoilt(case.active_ids, 300).cuda()
    gather_rows_(**plain)  # type: ignore[arg-type]
    gather_rows_(**bad)  # type: ignore[arg-type]
    assert_bitwise(row_indexed(bad["slab"]), row_indexed(plain["slab"]), "slab")  # type: ignore[arg-type]
    if bad["slab_scale"] is not None:
        assert_bitwise(bad["slab_scale"], plain["slab_scale"], "slab_scale")  # type: ignore[arg-type]
    held = bad["slab_ids"]
    assert isinstance(held, Tensor)
    good = case.active_ids >= 0
    assert_bitwise(held.cpu()[good], case.active_ids[good], "slab_ids")


def test_bad_tokens_of_the_update_are_padding() -> None:
    """Some bad ids have good ids in their low 32 bits."""
    rng = torch.Generator().manual_seed(0)
    tokens = torch.randint(-1, 500, (3, 400), generator=rng)
    bad = torch.tensor([500, -2, 2**31 - 1, -(2**31), 2**32 + 5, 2**40, -(2**40), 2**32 - 1])
    spoilt_tokens = torch.where(tokens < 0, bad[torch.arange(400) % 8], tokens)
    spoilt_tokens[:, ::7] = bad[torch.arange(58) % 8]
    tokens[:, ::7] = -1
    flat_groups = torch.randint(-1, 3, (400,), generator=rng)
    bad_groups = torch.tensor([3, -2, 2**32, 2**40])[torch.arange(400) % 4]
    bad_groups = torch.where(flat_groups < 0, bad_groups, flat_groups)
    calls = [
        ((tokens, None), (spoilt_tokens, None)),
        ((tokens[0], flat_groups), (spoilt_tokens[0], bad_groups)),
    ]
    for good, wrong in calls:
        states = []
        for stream, groups in (good, wrong):
            state = [t.cuda() for t in vocab_state(500, 64, num_groups=3, pinned=(1, 2)).tensors()]
            for _ in range(2):
                token_groups = None if groups is None else groups.cuda()
                vocab_update_(*state, stream.contiguous().cuda(), token_groups=token_groups)
            states.append(state)
        for got, want in zip(*states, strict=True):
            assert_bitwise(got, want)


def test_bad_tokens_and_groups_of_a_step_are_ignored() -> None:
    """They are neither judged nor counted; some have good ones in their low 32 bits."""
    rng = torch.Generator().manual_seed(1)
    tokens, groups = (torch.randint(-1, n, (400,), generator=rng) for n in (90, 3))
    requests = torch.randint(-1, 5, (400,), generator=rng)
    bad = torch.tensor([90, -2, 2**31 - 1, 2**32 + 5, 2**40, -(2**40), 2**32 - 1, -(2**63)])
    bad = bad[torch.arange(400) % 8]
    lengths = torch.tensor([10, 3] * 15, device="cuda")
    results = []
    for ids, owners, texts in (
        (tokens, groups, requests),
        [torch.where(t < 0, bad, t) for t in (tokens, groups, requests)],
    ):
        state = [t.cuda() for t in vocab_state(90, 8, num_groups=3, pinned=(1, 2)).tensors()]
        tally = Tally(90, num_lists=1, num_requests=5, device="cuda")
        tally.request_lists.zero_()
        for _ in range(2):
            vocab_observe_(
                *state, ids[:300].view(30, 10).cuda(), lengths=lengths, candidates=ids[300:].cuda(),
                token_groups=owners.cuda(), token_requests=texts.cuda(), tally=tally.data,
                num_lists=1,
            )  # fmt: skip
        results.append((*state, tally.data))
    for got, want in zip(*results, strict=True):
        assert_bitwise(got, want)
    assert bool((tally.verdicts > 0).all()) and bool(tally.text_counts.any())


def test_a_group_of_a_bad_list_stays_as_it_is() -> None:
    """And requests of bad lists are not counted; some have a good list in their low 32 bits."""
    bad = torch.tensor([2, -2, 2**32, 2**40 + 1, -(2**63)])
    state = vocab_state(90, 8, num_groups=5, pinned=(1, 2))
    got = [tensor.cuda() for tensor in state.tensors()]
    counts, ranks = torch.ones(2, 90).int().cuda(), torch.arange(90).int().cuda()
    seen, tokens = torch.zeros(5, 3).int().cuda(), torch.arange(90).repeat(5, 1).cuda()
    for reset in (True, False):
        vocab_refill_(*got, counts, ranks, bad.cuda(), pinned=3, reset=reset)
    vocab_count_(counts, seen, tokens, request_lists=bad.cuda())
    for one, other in zip(got, state.tensors(), strict=True):
        assert_bitwise(one.cpu(), other)
    assert bool((counts == 1).all()) and not seen.any()


def test_places_and_parents_out_of_range_count_as_none() -> None:
    """Some of them have a good place in their low 32 bits."""
    for op, arguments in cases(far=True, sound=False):
        bounds = {"frontier": arguments.get("begin", 0)}
        if op != "tree_grow_":  # which only writes parents
            bounds |= {name: arguments[name].size(1) for name in arguments if "parents" in name}
        inside = {
            name: arguments[name].where((arguments[name] >= 0) & (arguments[name] < bound), -1)
            for name, bound in bounds.items()
            if arguments.get(name) is not None
        }
        there, here = (
            {name: t.to(to) if isinstance(t, torch.Tensor) else t for name, t in given.items()}
            for given, to in ((arguments, "cuda"), ({**arguments, **inside}, "cpu"))
        )
        function = getattr(microspec_kernels, op)
        for got, want in zip(function(**there), function(**here), strict=True):
            assert_bitwise(got.cpu(), want)


MESSAGES = """
import torch
import microspec_kernels as mk
import bad_tree_calls as tree
from generators import vocab_state

def message(call, device):
    try:
        call(lambda t: t.to(device))
    except IndexError as error:
        return str(error)
    return f"nothing raised on {device}"

def ids(*values, dtype=torch.int32):
    return torch.tensor(values, dtype=dtype)

hidden, weight, slab = torch.ones(2, 8), torch.ones(9, 8), torch.ones(2, 3, 8)
good = ids(1, 2, 3)
state = vocab_state(9, 3, num_groups=2)
calls = {
    "active_ids": lambda to: mk.sparse_head(to(hidden), to(weight), to(ids(1, 9, -5)), 2),
    "negative": lambda to: mk.sparse_logits(to(hidden), to(weight), to(ids(1, -2, 3))),
    "group_ids": lambda to: mk.sparse_head(
        to(hidden), to(slab), to(ids(1, 2, 3, 4, 5, 6).view(2, 3)), 2, packed=True,
        group_ids=to(ids(1, 2))),
    "gather": lambda to: mk.gather_rows_(to(slab[0]), to(good), to(weight), to(ids(1, 2, 100))),
    "tokens": lambda to: mk.vocab_update_(
        *map(to, state.tensors()), to(ids(1, 2, 9, 4).view(2, 2))),
    "long": lambda to: mk.vocab_update_(
        *map(to, state.tensors()), to(ids(1, 2, 2**40, 4, dtype=torch.int64).view(2, 2))),
    "token_groups": lambda to: mk.vocab_update_(
        *map(to, state.tensors()), to(ids(1, 2)), token_groups=to(ids(0, 2))),
    "observed tokens": lambda to: mk.vocab_observe_(
        *map(to, state.tensors()), to(ids(1, 2, 9, 4).view(2, 2)), lengths=to(ids(1, 1)),
        token_groups=to(ids(0, 0, 1, 1))),
    "candidates": lambda to: mk.vocab_observe_(
        *map(to, state.tensors()), to(ids(1, 2)), candidates=to(ids(3, 9)),
        token_groups=to(ids(0, 0, 1, 1))),
    "observed groups": lambda to: mk.vocab_observe_(
        *map(to, state.tensors()), to(ids(1, 2)), token_groups=to(ids(0, -2))),
    "group_lists": lambda to: mk.vocab_refill_(
        *map(to, state.tensors()), to(ids(*range(18)).view(2, 9)), to(ids(*range(9))),
        to(ids(1, 2))),
}
bad = {
    "tree_grow_": tree.grow_value_rows()[-1], "tree_cut": tree.cut_value_rows()[-1],
    "tree_accept": tree.accept_value_rows()[-1],
}
for op, (_, valid, change, *_) in bad.items():
    given = {**valid(), **change(valid())}
    calls[op] = lambda to, op=op, given=given: getattr(mk, op)(
        **{n: to(v) if isinstance(v, torch.Tensor) else v for n, v in given.items()})
for name, call in calls.items():
    on_cpu, on_gpu = message(call, "cpu"), message(call, "cuda")
    assert on_gpu == on_cpu and "expected" in on_cpu, (name, on_cpu, on_gpu)
print("same", len(calls))
"""


def test_validation_raises_what_the_cpu_does() -> None:
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "MICROSPEC_VALIDATE": "1", "PYTHONPATH": path}
    result = subprocess.run(
        [sys.executable, "-c", MESSAGES], capture_output=True, text=True, env=environment
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout == "same 14\n"


@pytest.mark.parametrize("slab_dtype", [torch.bfloat16, torch.int8, torch.float8_e4m3fn], ids=str)
def test_weight_in_pinned_host_memory(slab_dtype: torch.dtype) -> None:
    rng = torch.Generator().manual_seed(0)
    weight = torch.randn(2000, 512, generator=rng).bfloat16().pin_memory()
    slabs = []
    for source in (weight, weight.cuda()):
        vocab = ActiveVocab(2000, 300, device="cuda")
        slab = WeightSlab(source, vocab, dtype=slab_dtype)
        for seed in range(4):
            tokens = torch.randint(2000, (150,), generator=torch.Generator().manual_seed(seed))
            vocab.update(tokens.cuda())
            slab.refresh()
        slab.wait()
        slabs.append(slab)
    assert_bitwise(row_indexed(slabs[0].rows), row_indexed(slabs[1].rows))
    assert_bitwise(slabs[0].ids, slabs[1].ids)
    assert slabs[0].ids.ge(0).any()


def test_pageable_host_memory_is_refused() -> None:
    weight = torch.randn(20, 16)
    ids = torch.tensor([3, 4], dtype=torch.int32, device="cuda")
    slab, held = torch.full((2, 16), NAN, device="cuda"), torch.full_like(ids, -1)
    with pytest.raises(ValueError, match=r"gather_rows_: weight: expected .*pinned"):
        gather_rows_(slab, held, weight, ids)
    assert held.eq(-1).all()
    with pytest.raises(ValueError, match=r"weight: expected .*pinned"):
        WeightSlab(weight, ActiveVocab(20, 4, device="cuda"))


def test_tensors_on_several_devices_are_refused() -> None:
    hidden, weight = torch.ones(1, 16, device="cuda"), torch.ones(9, 16, device="cuda")
    ids = torch.tensor([1, 2], dtype=torch.int32, device="cuda")
    others = ["cpu", *(f"cuda:{i}" for i in range(1, torch.cuda.device_count()))]
    for other in others:
        for argument in ("weight", "active_ids"):
            tensors = {"hidden": hidden, "weight": weight, "active_ids": ids}
            tensors[argument] = tensors[argument].to(other)
            with pytest.raises(ValueError, match=f"sparse_head: {argument}: .*{other}"):
                sparse_head(**tensors, k=1)
