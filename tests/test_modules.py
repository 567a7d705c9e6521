# SPDX-License-Identifier: Apache-2.0
"""SparseHead and SparseLMHead, the modules over vocabulary, slab and ops."""

import math
import re
from typing import Any

import pytest
import torch
from compare import assert_bitwise, assert_close
from generators import FLOATS, QUANTISED, normal
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from microspec_kernels import ActiveVocab, SparseHead, SparseLMHead, reference, sparse_head

V, K, D = 60, 16, 24
OPTIONS = {"logit_scale": 0.5, "softcap": 4.0}


def weight_of(dtype: torch.dtype) -> Tensor:
    return normal(torch.Generator().manual_seed(1), (V, D), dtype)


def hidden_of(m: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return normal(torch.Generator().manual_seed(2), (m, D), dtype)


def pair_of_heads(
    kind: Any, dtype: torch.dtype, num_groups: int, **options: Any
) -> tuple[Any, Any]:
    """Make an indexed and a packed head, with one vocabulary each."""
    weight = weight_of(dtype)
    return (
        kind(weight, ActiveVocab(V, K, num_groups=num_groups), mode="indexed", **options),
        kind(weight, ActiveVocab(V, K, num_groups=num_groups), mode="packed", **options),
    )


@pytest.mark.parametrize("buffers", [None, 1, 2])
@pytest.mark.parametrize("num_groups", [1, 2])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_indexed_equals_packed(dtype: torch.dtype, num_groups: int, buffers: int | None) -> None:
    bias = normal(torch.Generator().manual_seed(3), (V,), dtype)
    weight, hidden = weight_of(dtype), hidden_of(6, dtype)
    options = {"bias": bias, **OPTIONS}
    indexed = SparseHead(weight, ActiveVocab(V, K, num_groups=num_groups), **options)
    vocab = ActiveVocab(V, K, num_groups=num_groups)
    packed = SparseHead(weight, vocab, mode="packed", buffers=buffers, **options)
    group_ids = None if num_groups == 1 else torch.tensor([0, 1, -1, 1, 0, 0])
    rng = torch.Generator().manual_seed(4)
    for _ in range(6):
        one, other = indexed(hidden, 5, group_ids), packed(hidden, 5, group_ids)
        want = sparse_head(hidden, weight, vocab.ids, 5, group_ids=group_ids, **options)
        for a, b, c in zip(one, other, want, strict=True):
            assert_bitwise(a, b)
            assert_bitwise(a, c)
        tokens = torch.randint(0, V, (num_groups, 9), generator=rng)
        indexed.observe(tokens)
        packed.observe(tokens)


class Dispatched(TorchDispatchMode):
    """Record the names of the ops that PyTorch dispatches, without views, which are no kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view:
            self.names.append(func.name())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("buffers", [1, 2])
def test_a_packed_call_is_one_op(buffers: int) -> None:
    vocab = ActiveVocab(V, K)
    head = SparseHead(weight_of(torch.float32), vocab, mode="packed", buffers=buffers)
    hidden = hidden_of(6)
    with Dispatched() as dispatched:
        head(hidden, 5)
    assert dispatched.names == ["microspec::sparse_head"]
    groups = torch.tensor([0, 1, -1, 1, 0, 0])
    vocab = ActiveVocab(V, K, num_groups=2)
    head = SparseHead(weight_of(torch.float32), vocab, mode="packed", buffers=1)
    with Dispatched() as dispatched:
        head(hidden, 5, groups)
    assert dispatched.names == ["microspec::sparse_head"]


@pytest.mark.parametrize(("num_groups", "kernels"), [(2, 1), (4, 1), (3, 4)])
def test_two_buffers_with_several_groups(num_groups: int, kernels: int) -> None:
    """Only the groups' numbers in the front buffer are computed, by one kernel for G = 2^n."""
    vocab = ActiveVocab(V, K, num_groups=num_groups)
    head = SparseHead(weight_of(torch.float32), vocab, mode="packed", buffers=2)
    hidden, groups = hidden_of(6), torch.tensor([0, 1, -1, num_groups - 1, 0, -1])
    with Dispatched() as dispatched:
        head(hidden, 5, groups)
    assert len(dispatched.names) == kernels + 1
    assert dispatched.names[-1] == "microspec::sparse_head"


def test_observe_ragged() -> None:
    indexed, packed = pair_of_heads(SparseHead, torch.float32, 2)
    tokens, groups = torch.tensor([5, 6, 7, 8]), torch.tensor([1, 0, -1, 1])
    for head in (indexed, packed):
        head.observe(tokens, token_groups=groups)
        _, ids, _ = head(hidden_of(2), 3, torch.tensor([0, 1]))
        assert [sorted(row) for row in ids.tolist()] == [[-1, -1, 6], [-1, 5, 8]]


@pytest.mark.parametrize("option", ["bias", "logit_scale", "softcap"])
@pytest.mark.parametrize("mode", ["indexed", "packed"])
@pytest.mark.parametrize("kind", [SparseHead, SparseLMHead])
def test_every_option_counts(kind: Any, mode: str, option: str) -> None:
    values = {"bias": torch.arange(V).float(), "logit_scale": 0.5, "softcap": 1.5}
    weight, hidden = weight_of(torch.float32), hidden_of(3)
    vocab = ActiveVocab(V, K)
    vocab.update(torch.arange(10))
    head = kind(weight, vocab, mode=mode, **{option: values[option]})
    z = hidden.double() @ weight[:10].double().T
    z = {"bias": z + torch.arange(10), "logit_scale": z / 2, "softcap": 1.5 * torch.tanh(z / 1.5)}[
        option
    ]
    got = head(hidden, 10)[0] if kind is SparseHead else head(hidden)[:, :10].sort(1, True).values
    assert_close(got, z.sort(1, descending=True).values, 1e-5)


@pytest.mark.parametrize("dtype", QUANTISED, ids=str)
def test_quantised(dtype: torch.dtype) -> None:
    """A quantised slab of a float weight equals a quantised weight in either mode."""
    weight, hidden = weight_of(torch.float32), hidden_of(4)
    rows, scale = reference.quantise_rows(weight, dtype)
    heads = [
        SparseHead(weight, ActiveVocab(V, K), mode="packed", slab_dtype=dtype),
        SparseHead(rows, ActiveVocab(V, K), weight_scale=scale),
        SparseHead(rows, ActiveVocab(V, K), mode="packed", weight_scale=scale, buffers=2),
    ]
    for head in heads:
        head.observe(torch.arange(20, 32))
    results = [head(hidden, 12) for head in heads]
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert_bitwise(a, b)
    exact = hidden.double() @ (rows[20:32].double() * scale[20:32, None].double()).T
    assert_close(results[0][0], exact.sort(1, descending=True).values, 1e-4)


def dense_logits(
    hidden: Tensor, weight: Tensor, active: list[list[int]], groups: list[int]
) -> Tensor:
    """Return the full head's logits, masked to the active tokens of each row's group."""
    z = hidden.double() @ weight.double().T
    masked = torch.full_like(z, -math.inf)
    for row, group in enumerate(groups):
        if group >= 0:
            masked[row, active[group]] = z[row, active[group]]
    return masked


@pytest.mark.parametrize("mode", ["indexed", "packed"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("leading", [(), (6,), (2, 3), (3, 1, 2), (0,), (2, 0)])
def test_dense_logits_masked_to_the_active_set(
    leading: tuple[int, ...], dtype: torch.dtype, mode: Any
) -> None:
    vocab = ActiveVocab(V, K)
    head = SparseLMHead(weight_of(dtype), vocab, mode=mode)
    hidden = hidden_of(math.prod(leading), dtype).view(*leading, D)
    # Nothing active; the first and the last token; full, after evictions.
    for tokens in ([], [0, V - 1], list(range(10, 40))):
        head.observe(torch.tensor(tokens, dtype=torch.int64))
        active = vocab.ids[vocab.ids >= 0].tolist()
        logits = head(hidden)
        assert (logits.shape, logits.dtype) == ((*leading, V), dtype)
        flat = hidden.reshape(-1, D)
        want = dense_logits(flat, weight_of(dtype), [active], [0] * len(flat))
        rounding = {torch.float32: 1e-5, torch.float16: 0.02, torch.bfloat16: 0.16}[dtype]
        assert_close(logits.reshape(-1, V), want, rounding, "dense")


@pytest.mark.parametrize("mode", ["indexed", "packed"])
def test_dense_logits_of_groups_and_padding(mode: Any) -> None:
    vocab = ActiveVocab(V, K, num_groups=2)
    head = SparseLMHead(weight_of(torch.float32), vocab, mode=mode)
    head.observe(torch.tensor([[1, 2, 3], [3, 4, -1]]))
    hidden, groups = hidden_of(4), torch.tensor([1, 0, -1, 1], dtype=torch.int32)
    want = dense_logits(hidden, weight_of(torch.float32), [[1, 2, 3], [3, 4]], groups.tolist())
    assert_close(head(hidden.view(2, 2, D), groups.view(2, 2)).view(4, V), want, 1e-5)


@pytest.mark.parametrize("kind", [SparseHead, SparseLMHead])
def test_module_manners(kind: Any) -> None:
    """The module borrows the model's weight as no parameter; only a replaced layer saves it."""
    weight = torch.nn.Parameter(weight_of(torch.float32))
    for mode in ("indexed", "packed"):
        head = kind(weight, ActiveVocab(V, K), mode=mode)
        assert not list(head.parameters())
        assert [*head.state_dict()] == (["weight"] if kind is SparseLMHead else [])
        assert head.weight.data_ptr() == weight.data_ptr()
        assert (head.slab is None) == (mode == "indexed")


@pytest.mark.parametrize(
    ("weight", "options", "message"),
    [
        (torch.zeros(V, D), {"mode": "dense"}, "mode: expected 'indexed' or 'packed', got 'dense'"),
        (torch.zeros(V + 1, D), {}, f"weight: expected shape [{V}, D], got [{V + 1}, {D}]"),
        (torch.zeros(V), {"mode": "packed"}, f"weight: expected shape [{V}, D], got [{V}]"),
        (torch.zeros(V, D), {"buffers": 2}, "slab_dtype, buffers: expected None in indexed mode"),
        (torch.zeros(V, D), {"slab_dtype": torch.int8}, "slab_dtype, buffers: expected None"),
        (torch.zeros(V, D), {"mode": "packed", "buffers": 3}, "buffers: expected 1 or 2, got 3"),
    ],
)
@pytest.mark.parametrize("kind", [SparseHead, SparseLMHead])
def test_wrong_construction(
    kind: Any, weight: Tensor, options: dict[str, Any], message: str
) -> None:
    name = "WeightSlab" if "buffers: expected 1" in message else kind.__name__
    with pytest.raises(ValueError, match=re.escape(f"{name}: {message}")):
        kind(weight, ActiveVocab(V, K), **options)
