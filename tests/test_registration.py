# SPDX-License-Identifier: Apache-2.0
"""The ops in PyTorch: schemas, fakes, mutation, torch.compile."""

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from bad_calls import (
    count_ragged,
    count_requests,
    judge_call,
    observe_groups,
    observe_plain,
    observe_requests,
    refill_groups,
    sample_call,
    sample_plain,
    sample_slab,
    update_call,
)
from bad_tree_calls import accept_call, cut_call, grow_call, grow_roots
from compare import assert_bitwise
from generators import E2M1, INT4, QUANTISED, gather_case, head_case, row_indexed, vocab_state
from schemas import SCHEMAS
from torch import Tensor

import microspec_kernels
from microspec_kernels import gather_rows_, sparse_head, sparse_logits, vocab_update_
from microspec_kernels._checks import MAX_TOP_K


@pytest.mark.parametrize("name", SCHEMAS)
def test_schema(name: str) -> None:
    overload = getattr(torch.ops.microspec, name).default
    assert str(overload._schema) == f"microspec::{name}{SCHEMAS[name]}"
    assert overload._can_decompose() is False


def head_arguments(**options: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    case = head_case(31, **options)
    return case.tensors(), case.options()


def vocab_arguments(num_groups: int, ragged: bool) -> tuple[tuple[Any, ...], dict[str, Any]]:
    tensors = vocab_state(50, 6, num_groups=num_groups, pinned=(3,)).tensors()
    if ragged:
        return (*tensors, torch.arange(8)), {"token_groups": torch.arange(8) % num_groups}
    return (*tensors, torch.arange(8, dtype=torch.int32).repeat(num_groups, 1)), {}


def other_calls() -> list[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """Return calls of the ops beside heads and gathers, with every argument."""
    return [
        in_order("sparse_sample", sample_call()),
        in_order("sparse_sample", sample_plain()),
        in_order("sparse_sample", sample_slab()),
        in_order("vocab_count_", count_requests()),
        in_order("vocab_count_", count_ragged()),
        in_order("vocab_observe_", observe_groups()),
        in_order("vocab_observe_", observe_requests()),
        in_order("vocab_observe_", observe_plain()),
        in_order("vocab_observe_", judge_call()),
        in_order("vocab_observe_", update_call()),
        in_order("vocab_refill_", refill_groups()),
        in_order("vocab_refill_", {**refill_groups(), "reset": False}),
        in_order("tree_grow_", grow_roots()),
        in_order("tree_grow_", grow_call()),
        in_order("tree_cut", cut_call()),
        in_order("tree_accept", accept_call()),
    ]


def in_order(name: str, arguments: dict[str, Any]) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
    """Split arguments by name into positional ones and keywords."""
    schema = getattr(torch.ops.microspec, name).default._schema
    positional = [a.name for a in schema.arguments if not a.kwarg_only]
    keywords = {n: value for n, value in arguments.items() if n not in positional}
    return name, tuple(arguments[n] for n in positional), keywords


def opcheck(name: str, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
    """Run torch.library.opcheck, without its schema test for fp8.

    That test compares with allclose, which PyTorch lacks for fp8. An op's mutations do not depend
    on the dtype, and int8 passes the test.
    """
    tests = [
        "test_schema",
        "test_autograd_registration",
        "test_faketensor",
        "test_aot_dispatch_dynamic",
    ]
    tensors = [v for v in (*arguments, *keywords.values()) if isinstance(v, Tensor)]
    if any(tensor.dtype == torch.float8_e4m3fn for tensor in tensors):
        tests.remove("test_schema")
    op = getattr(torch.ops.microspec, name)
    torch.library.opcheck(op, arguments, keywords, test_utils=tests)


HEADS: list[dict[str, Any]] = [
    {},
    {"dtype": torch.bfloat16, "bias": torch.float32, "logit_scale": 0.5, "softcap": 5.0},
    {"num_groups": 3, "packed": True, "dtype": torch.float16, "gap": 8, "padding": True},
    {"num_groups": 2, "weight_dtype": torch.int8, "long_groups": False},
    {"packed": True, "weight_dtype": torch.float8_e4m3fn, "dtype": torch.bfloat16},
    {"num_groups": 2, "packed": True, "weight_dtype": INT4, "dtype": torch.bfloat16, "gap": 8},
    {"num_groups": 2, "packed": True, "weight_dtype": E2M1, "dtype": torch.bfloat16, "gap": 8},
]
GATHERS: list[dict[str, Any]] = [
    {},
    {"num_groups": 2, "dtype": torch.bfloat16, "slab_dtype": torch.int8, "gap": 8},
    {"dtype": torch.float16, "slab_dtype": torch.float8_e4m3fn},
    {"num_groups": 2, "dtype": torch.int8},
    {"num_groups": 2, "dtype": torch.bfloat16, "slab_dtype": INT4, "gap": 8},
    {"dtype": INT4},
    {"num_groups": 2, "dtype": E2M1, "gap": 8},
]


@pytest.mark.parametrize("options", HEADS, ids=str)
def test_opcheck_head(options: dict[str, Any]) -> None:
    arguments, keywords = head_arguments(**options)
    opcheck("sparse_head", (*arguments, 5), keywords)
    opcheck("sparse_logits", arguments, keywords)


@pytest.mark.parametrize("options", GATHERS, ids=str)
def test_opcheck_gather(options: dict[str, Any]) -> None:
    case = gather_case(32, **options)
    tensors = (case.slab, case.slab_ids, case.weight, case.active_ids)
    keywords = {"slab_scale": case.slab_scale, "weight_scale": case.weight_scale}
    opcheck("gather_rows_", tensors, keywords)


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compiled_calls_of_e2m1_rows(compiler: str) -> None:
    """PyTorch computes nothing on float4_e2m1fn_x2 tensors, but compiled graphs hand them on."""

    def call(hidden: Tensor, ids: Tensor, copied: dict[str, Tensor]) -> tuple[Tensor, ...]:
        gather_rows_(**copied)
        scale = copied["slab_scale"]
        return sparse_head(
            hidden * 2, copied["slab"], ids + 0, 4, packed=True, weight_scale=scale, logit_scale=0.5
        )

    torch.compiler.reset()
    case = gather_case(7, dim=48, dtype=E2M1, same=0.0)
    eager, compiled = case.copy(), case.copy()
    hidden, ids = torch.randn(3, 48), case.active_ids
    want = call(hidden, ids, eager.arguments())
    got = torch.compile(call, fullgraph=True, backend=compiler)(hidden, ids, compiled.arguments())
    assert_bitwise(row_indexed(compiled.slab), row_indexed(eager.slab))
    for one, other in zip(got, want, strict=True):
        assert_bitwise(one, other)


@pytest.mark.parametrize(("num_groups", "ragged"), [(1, False), (3, False), (3, True)])
def test_opcheck_vocab(num_groups: int, ragged: bool) -> None:
    arguments, keywords = vocab_arguments(num_groups, ragged)
    opcheck("vocab_update_", arguments, keywords)


@pytest.mark.parametrize("call", other_calls(), ids=lambda call: call[0])
def test_opcheck_learn(call: tuple[str, tuple[Any, ...], dict[str, Any]]) -> None:
    opcheck(*call)


@pytest.mark.parametrize("options", HEADS, ids=str)
def test_fake_results_look_like_real_ones(options: dict[str, Any]) -> None:
    arguments, keywords = head_arguments(**options)

    def meta(value: Any) -> Any:
        return value.to("meta") if isinstance(value, Tensor) else value

    fakes = tuple(map(meta, arguments)), {name: meta(v) for name, v in keywords.items()}
    real = (*sparse_head(*arguments, 5, **keywords), sparse_logits(*arguments, **keywords))
    fake = (*sparse_head(*fakes[0], 5, **fakes[1]), sparse_logits(*fakes[0], **fakes[1]))
    for one, other in zip(real, fake, strict=True):
        assert (one.shape, one.dtype, one.stride()) == (other.shape, other.dtype, other.stride())


def one_step(
    hidden: Tensor, weight: Tensor, state: tuple[Tensor, ...], slab: Tensor, held: Tensor,
    scale: Tensor, tokens: Tensor,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Take a whole draft step: each op reads the in-place results of the op before."""
    vocab_update_(*state, tokens)
    gather_rows_(slab, held, weight, state[0], slab_scale=scale)
    groups = torch.zeros(hidden.size(0), dtype=torch.long)
    packed = {"packed": True, "group_ids": groups, "weight_scale": scale}
    top = sparse_head(hidden * 2, slab, held, 4, logit_scale=0.5, softcap=0.5, **packed)
    dense = sparse_logits(hidden, weight, state[0][0]) + 1
    return (*top, dense, state[3] + 1)


def step_arguments(dtype: torch.dtype) -> tuple[Any, ...]:
    rng = torch.Generator().manual_seed(5)
    weight = torch.randn(50, 24, generator=rng)
    slab = torch.zeros(1, 12, 24, dtype=dtype)
    held = torch.full((1, 12), -1, dtype=torch.int32)
    hidden = torch.randn(3, 24, generator=rng)
    return hidden, weight, vocab_state(50, 12).tensors(), slab, held, torch.ones(1, 12)


# Inductor plans memory and may reorder; aot_eager shows that the graph itself is correct.
@pytest.mark.parametrize(
    ("compiler", "dtype"),
    [("aot_eager", torch.int8), ("inductor", torch.int8), ("aot_eager", torch.float8_e4m3fn)],
)
def test_compiled_step(compiler: str, dtype: torch.dtype) -> None:
    torch.compiler.reset()
    compiled: Callable[..., Any] = torch.compile(one_step, fullgraph=True, backend=compiler)
    eager_arguments, arguments = step_arguments(dtype), step_arguments(dtype)
    rng = torch.Generator().manual_seed(6)
    for n in (7, 7, 20):
        tokens = torch.randint(0, 50, (n,), generator=rng)
        want = one_step(*eager_arguments, tokens)
        got = compiled(*arguments, tokens)
        for one, other in zip(got, want, strict=True):
            assert_bitwise(one, other)
        for one, other in zip(arguments[2], eager_arguments[2], strict=True):
            assert_bitwise(one, other, "state")
        for one, other in zip(arguments[3:], eager_arguments[3:], strict=True):
            assert_bitwise(row_indexed(one), row_indexed(other), "slab")
    assert int(arguments[2][3]) == 34, "the vocabulary's clock"


def test_compiled_wrong_call_is_an_error() -> None:
    torch.compiler.reset()
    case = head_case(33)
    compiled = torch.compile(sparse_head, fullgraph=True, backend="aot_eager")
    with pytest.raises(Exception, match=f"k: expected 1 <= k <= {MAX_TOP_K}, got {MAX_TOP_K + 1}"):
        compiled(*case.tensors(), MAX_TOP_K + 1)


@pytest.mark.parametrize("weight_dtype", [torch.float32, *QUANTISED], ids=str)
def test_reference_backend_serves_the_ops_themselves(weight_dtype: torch.dtype) -> None:
    """The dispatcher makes the choice, so engines that call torch.ops get it too."""
    microspec_kernels.backend("cpu")
    case = head_case(34, weight_dtype=weight_dtype, num_groups=2, packed=True)
    want = torch.ops.microspec.sparse_head(*case.tensors(), 5, **case.options())
    assert microspec_kernels.backend("reference") == "reference"
    for _ in range(2):  # twice: choosing again is harmless
        microspec_kernels.backend("reference")
    called = []
    original = microspec_kernels.reference.sparse_head
    microspec_kernels.reference.sparse_head = lambda *a, **k: called.append(1) or original(*a, **k)
    try:
        got = torch.ops.microspec.sparse_head(*case.tensors(), 5, **case.options())
        assert called
        microspec_kernels.backend("cpu")
        again = torch.ops.microspec.sparse_head(*case.tensors(), 5, **case.options())
        assert len(called) == 1
    finally:
        microspec_kernels.reference.sparse_head = original
    assert_bitwise(got[1], want[1])
    for one, other in zip(again, want, strict=True):
        assert_bitwise(one, other)


def test_unknown_backend() -> None:
    before = microspec_kernels.backend()
    with pytest.raises(
        ValueError, match=r"backend: name: expected one of .*reference.*, got 'abacus'"
    ):
        microspec_kernels.backend("abacus")
    assert microspec_kernels.backend() == before


@pytest.mark.parametrize("name", ["cpu", "reference"])
def test_backend_from_the_environment(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import microspec_kernels as m; print(m.backend())"],
        env={**os.environ, "MICROSPEC_BACKEND": name},
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == name
