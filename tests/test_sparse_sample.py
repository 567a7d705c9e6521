# SPDX-License-Identifier: Apache-2.0
"""sparse_sample: the tokens that the counter-based numbers draw, and the logits that it leaves."""

from typing import Any

import pytest
import torch
from backends_under_test import ALL, COMPILED, CPU, EMULATED
from compare import assert_bitwise
from generators import FLOATS, NAN, head_case
from sampling import SENTINEL, check_call, numbers_of, rows_of
from torch import Tensor

import microspec_kernels
from microspec_kernels import (
    ActiveVocab,
    EngineHead,
    Settings,
    SparseHead,
    reference,
    sparse_head,
    sparse_sample,
)

INF = float("inf")
COLD_AND_HOT = (0.3, 1.0, 2.5, 1e-3, 7.0, 1e4, 1e-30, 1e30)
CASES: dict[str, dict[str, Any]] = {
    "one group": {"m": 40},
    "bf16, int8 slab, groups, padding": {
        "m": 33, "dtype": torch.bfloat16, "weight_dtype": torch.int8, "packed": True,
        "num_groups": 3, "padding": True, "bias": torch.float32, "gap": 8,
    },
    "fp16, padding of all rows": {
        "m": 4, "dtype": torch.float16, "num_groups": 2, "padding": True, "one_group": True,
    },
    "few of many slots": {"m": 9, "capacity": 700, "vocab_size": 900, "active": 30},
    "one slot": {"m": 3, "capacity": 1, "active": 1},
    "no slot": {"m": 3, "capacity": 0},
    "no token": {"m": 3, "active": 0},
    "no row": {"m": 0},
}  # fmt: skip


def memory(rows: int, columns: int, dtype: torch.dtype, gap: int = 5) -> tuple[Tensor, Tensor]:
    """Return token_logits [rows, columns], misaligned, and all memory around it; sentinels."""
    whole = torch.full((rows * (columns + gap) + 3,), SENTINEL, dtype=dtype)
    return whole[3:].view(rows, columns + gap)[:, :columns], whole


@pytest.mark.backends(*ALL)
@pytest.mark.parametrize("name", CASES)
def test_inverse_of_the_running_sum(name: str) -> None:
    """Logits are exact here, so only an exponential's rounding can move a boundary."""
    options = {"vocab_size": 50, **CASES[name]}
    case = head_case(5, exact=True, logit_scale=0.125, **options)
    m, moved = len(case.hidden), 0
    for seed, dtype in enumerate(FLOATS):
        rows = rows_of(seed, m, COLD_AND_HOT)
        logits, whole = memory(m + 2, options["vocab_size"] + 4 * seed, dtype)
        target = torch.randperm(m + 2, generator=torch.Generator().manual_seed(seed))[:m]
        target = target.where(target % 5 > 0, -1)
        target = target if seed else target.int()
        moved += check_call(case, rows, token_logits=logits, logit_rows=target)
        inside = whole[3:].view(m + 2, -1)
        assert (whole[:3] == SENTINEL).all() and (inside[:, logits.size(1) :] == SENTINEL).all()
    assert moved <= 1, "rows on a boundary"


@pytest.mark.backends(*ALL)
def test_options_of_the_logits() -> None:
    """Bias, softcap and scale: what is drawn from is what sparse_logits returns."""
    case = head_case(6, m=12, bias=torch.float32, logit_scale=0.7, softcap=3.0)
    logits, _ = memory(12, 50, torch.float32, gap=0)
    assert check_call(case, rows_of(1, 12, (0.5, 1.0, 3.0)), token_logits=logits) <= 1


@pytest.mark.backends(*ALL)
@pytest.mark.parametrize("capacity", [64, 8192])
def test_numbers_are_those_of_philox(capacity: int) -> None:
    """A flat law over 2^n slots draws slot floor(u · 2^n): all bits that a slot can show."""
    m = 16 if capacity == 64 else 5
    rows = rows_of(3, m, (INF, 1.0))
    hidden, weight = torch.zeros(m, 1), torch.ones(capacity, 1)
    ids = torch.randperm(capacity, generator=torch.Generator().manual_seed(0)).int()
    tokens, log_probs = sparse_sample(hidden, weight, ids, **rows)
    assert tokens.tolist() == ids[(numbers_of(rows) * capacity).long()].tolist()
    want = -torch.tensor(float(capacity)).log()
    torch.testing.assert_close(log_probs, want.expand(m), rtol=1e-6, atol=0)


def test_known_answers() -> None:
    """Random123's vectors. (csrc/common/philox.h asserts them when it is compiled.)"""
    ones, pi = 2**32 - 1, (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
    for counter, key, want in (
        ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((ones,) * 4, (ones,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (pi, (0xA4093822, 0x299F31D0), "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ):
        got = reference.philox4x32_10(counter, key)  # type: ignore[arg-type]
        assert " ".join(f"{word:08x}" for word in got) == want


@pytest.mark.backends(*ALL)
def test_temperature_0_takes_the_best_token() -> None:
    """Small integers tie often. Negative and NaN temperatures are no temperatures either."""
    case = head_case(7, m=30, dim=2, exact=True, num_groups=2, padding=True)
    rows = rows_of(0, 30, (0.0, -1.0, NAN, -0.0))
    tokens, log_probs = sparse_sample(*case.tensors(), **rows, **case.options())
    best = sparse_head(*case.tensors(), 1, **case.options())[1][:, 0]
    assert_bitwise(tokens, best)
    assert_bitwise(log_probs, torch.where(best >= 0, 0.0, -INF))


@pytest.mark.backends(*ALL)
def test_special_logits() -> None:
    """One row a line: its logits by slot, its temperature, what may be drawn, the probability."""
    lines: list[tuple[list[float], float, set[int], float]] = [
        ([1.0, NAN, 3.0, NAN], 1e-9, {2}, NAN),
        ([NAN, NAN, NAN, NAN], 1.0, {2}, NAN),  # the lowest id
        ([1.0, NAN, 3.0, 3.0], 0.0, {2}, NAN),
        ([INF, 1.0, INF, -INF], 1.0, {7, 2}, 0.5),
        ([INF, 1.0, INF, -INF], INF, {7, 2}, 0.5),
        ([-INF, -INF, -INF, -INF], 1.0, {7, 5, 2, 4}, 0.25),
        ([-INF, 2.0, -INF, 2.0], INF, {5, 4}, 0.5),
        ([-INF, 2.0, -INF, 1.0], 1e-40, {5}, 1.0),
        ([80.0, 0.0, 80.0, -40.0], 1e-2, {7, 2}, 0.5),
    ]
    ids = torch.tensor([7, 5, 2, -1, 4], dtype=torch.int32)
    bias = torch.full((len(lines), 8), NAN)
    bias[:, [7, 5, 2, 4]] = torch.tensor([logits for logits, *_ in lines])
    for m, (_, temperature, allowed, probability) in enumerate(lines):
        rows = rows_of(m, 8, (temperature,))
        tokens, log_probs = sparse_sample(
            torch.zeros(8, 1), torch.zeros(8, 1), ids, bias=bias[m], **rows
        )
        assert set(tokens.tolist()) <= allowed, m
        want = torch.tensor(probability).log().expand(8)
        torch.testing.assert_close(log_probs, want, rtol=1e-6, atol=0, equal_nan=True)


@pytest.mark.backends(*ALL)
@pytest.mark.parametrize("packed", [False, True])
def test_tokens_of_a_draft_with_its_own_numbers(packed: bool) -> None:
    """Tokens that token_logits has no column for are drawn, but not stored."""
    case = head_case(8, m=12, num_groups=2, packed=packed, exact=True, logit_scale=0.1)
    row_tokens = 3 * torch.arange(50).flip(0)
    logits, whole = memory(12, 100, torch.bfloat16)
    check_call(case, rows_of(2, 12, (1.0, 3.0)), token_logits=logits, row_tokens=row_tokens)
    assert (whole[3:].view(12, -1)[:, 100:] == SENTINEL).all()


@pytest.mark.backends(*CPU, *EMULATED)
def test_more_columns_than_a_block_writes() -> None:
    """Spans of 32 KB, whose first and last elements are not 16-byte aligned."""
    ids = torch.tensor([0, 8191, 8192, 16383, 16384, 16385, -1, 20000], dtype=torch.int32)
    logits, whole = memory(2, 20003, torch.float32)
    weight = torch.zeros(20001, 1)
    weight[ids[ids >= 0].long()] = torch.arange(7.0)[:, None]
    case = head_case(0).changed(hidden=torch.ones(2, 1), weight=weight, active_ids=ids)
    check_call(case, rows_of(0, 2, (1.0,)), token_logits=logits)
    assert (whole[:3] == SENTINEL).all() and (whole[3:].view(2, -1)[:, 20003:] == SENTINEL).all()


@pytest.mark.backends(*CPU, *EMULATED)
def test_offsets_beyond_2_to_the_31() -> None:
    """The system gives memory only for the pages that are written."""
    columns, stride = 50, 2**31 + 8
    logits = torch.empty(stride + columns, dtype=torch.float16).as_strided(
        (2, columns), (stride, 1)
    )
    logits[:] = SENTINEL
    case = head_case(9, m=3, exact=True)
    target = torch.tensor([1, -1, 0])
    check_call(case, rows_of(4, 3, (1.0,)), token_logits=logits, logit_rows=target)


@pytest.mark.backends(*COMPILED)
def test_rows_of_token_logits_that_do_not_exist_are_not_written(request: Any) -> None:
    """A device does not check them; a CPU raises an error."""
    case = head_case(9, m=3, exact=True)
    logits, whole = memory(2, 50, torch.float32)
    call = {"token_logits": logits, "logit_rows": torch.tensor([2, -7, 2**40])}
    try:
        sparse_sample(*case.tensors(), **rows_of(4, 3, (1.0,)), **call)
    except IndexError as error:
        assert "logit_rows: expected rows in [0, 2) or -1, got 2 at position 0" in str(error)
    assert (whole == SENTINEL).all()


def chi_square(tokens: Tensor, law: Tensor) -> float:
    """Return the statistic of tokens drawn from law [V], over tokens expected 5 times or more."""
    counts, want = tokens.bincount(minlength=len(law)).double(), law.double() * len(tokens)
    assert not (counts[law == 0]).any()
    often = want >= 5
    rest = torch.stack((counts[~often].sum(), want[~often].sum()))
    statistic = ((counts - want)[often] ** 2 / want[often]).sum()
    return float(statistic + (rest[0] - rest[1]) ** 2 / rest[1].clamp(min=1.0))


# With 30 degrees of freedom or fewer, a right law exceeds this once in 10^5 seeds. The seeds are
# fixed.
UNLIKELY = 75.0


@pytest.mark.parametrize("temperature", [1.0, 0.4, 50.0])
@pytest.mark.parametrize("vary", ["seeds", "positions"])
def test_law(vary: str, temperature: float) -> None:
    """A flat law (50) and skewed ones, over consecutive seeds or consecutive positions."""
    n, rng = 40_000, torch.Generator().manual_seed(1)
    weight, ids = torch.randn(31, 4, generator=rng), torch.arange(31, dtype=torch.int32)
    hidden = torch.randn(1, 4, generator=rng)
    rows = {"seeds": torch.full((n,), 11), "positions": torch.full((n,), 5)}
    rows[vary] = torch.arange(n)
    temperatures = torch.full((n,), temperature)
    tokens, _ = sparse_sample(hidden.expand(n, 4), weight, ids, temperatures, **rows)
    law = (hidden.double() @ weight.double().T / temperature).softmax(1)[0]
    assert chi_square(tokens, law) < UNLIKELY


def test_rejection_sampling_gives_the_target_law() -> None:
    """Accept a drafted token with min(1, p / q), or draw from max(p - q, 0): tokens follow p."""
    n, size, temperature, rng = 40_000, 24, 0.8, torch.Generator().manual_seed(2)
    weight, hidden = torch.randn(size, 4, generator=rng), torch.randn(1, 4, generator=rng)
    ids = torch.tensor([3, 17, -1, 0, 9, 21, 5], dtype=torch.int32)
    p = torch.randn(size, generator=rng).double().softmax(0)
    logits = torch.empty(n, size)
    drafted, log_probs = sparse_sample(
        hidden.expand(n, 4), weight, ids, torch.full((n,), temperature),
        torch.full((n,), 3), torch.arange(n), token_logits=logits,
    )  # fmt: skip
    assert_bitwise(logits[1:], logits[:-1])
    q = (logits[0].double() / temperature).softmax(0)
    torch.testing.assert_close(log_probs.double(), q[drafted].log(), rtol=1e-5, atol=1e-5)
    accepted = torch.rand(n, generator=rng, dtype=torch.float64) < p[drafted] / q[drafted]
    others = (p - q).clamp(min=0).multinomial(n, replacement=True, generator=rng)
    assert 0.1 < accepted.double().mean() < 0.9
    assert chi_square(drafted.where(accepted, others), p) < UNLIKELY


V, K, D = 50, 16, 24


@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (0,)], ids=str)
@pytest.mark.parametrize("mode", ["indexed", "packed"])
def test_head_samples(mode: Any, shape: tuple[int, ...]) -> None:
    rng = torch.Generator().manual_seed(1)
    weight, hidden = torch.randn(V, D, generator=rng), torch.randn(*shape, D, generator=rng)
    m = hidden.shape[:-1].numel()
    rows = rows_of(1, m, (0.0, 1.0, 2.0))
    groups = torch.arange(m) % 3 - 1
    head = SparseHead(weight, ActiveVocab(V, K, num_groups=2), mode=mode)
    head.observe(torch.arange(20).view(2, 10))
    ids, options = head.vocab.ids, {"group_ids": groups}
    want_logits, logits = torch.zeros(m, V), torch.zeros(m, V)
    flat = hidden.reshape(m, D)
    want = sparse_sample(flat, weight, ids, **rows, token_logits=want_logits, **options)
    named = {"token_logits": logits, "logit_rows": torch.arange(m).view(shape)}
    by_row = [tensor.view(shape) for tensor in rows.values()]
    got = head.sample(hidden, *by_row, groups.view(shape), **named)
    for one, other in zip(got, want, strict=True):
        assert_bitwise(one, other.view(shape))
    assert_bitwise(logits, want_logits)


def test_leading_dimensions_must_be_those_of_hidden() -> None:
    rows = rows_of(0, 6, (1.0,))
    head = SparseHead(torch.zeros(V, D), ActiveVocab(V, K, frequent_tokens=[1]))
    by_row = {name: tensor.view(2, 3) for name, tensor in rows.items()}
    for name, tensor in (*rows.items(), ("logit_rows", torch.arange(6))):
        call = {**by_row, "token_logits": torch.zeros(6, V), name: tensor}
        with pytest.raises(ValueError, match=rf"{name}: expected shape \[2, 3\], got \[6\]"):
            head.sample(torch.zeros(2, 3, D), **call)


def test_engine_head_samples_the_targets_tokens() -> None:
    """A draft of 30 rows for a target of 100 tokens: EAGLE-3's d2t."""
    rng, m = torch.Generator().manual_seed(2), 40
    weight, hidden = torch.randn(30, D, generator=rng), torch.randn(m, D, generator=rng)
    row_tokens = torch.randperm(100, generator=rng)[:30]
    engine = EngineHead(
        weight, Settings(capacity=K, learn=False), target_vocab_size=100, row_tokens=row_tokens
    )
    engine.observe(row_tokens[3:20])
    rows, logits = rows_of(2, m, (1.0, 0.0)), torch.zeros(m, 100)
    tokens, log_probs = engine.sample(hidden, *rows.values(), token_logits=logits)
    top, named, _ = engine.topk(hidden, K)
    want = torch.full((m, 100), -INF).scatter(1, named, top)
    torch.testing.assert_close(logits, want)
    cold = rows["temperatures"] == 0
    assert_bitwise(tokens[cold], engine.argmax(hidden)[cold])
    want = logits.log_softmax(1).gather(1, tokens[:, None])[:, 0].masked_fill(cold, 0.0)
    torch.testing.assert_close(log_probs, want)
    engine.reset()
    nothing, impossible = engine.sample(hidden, *rows.values())
    assert not nothing.any() and (impossible == -INF).all()


def test_ranks_that_share_a_head_cannot_sample() -> None:
    head = SparseHead(torch.zeros(V, D), ActiveVocab(V, K))
    head.process_group = object()  # type: ignore[assignment]
    with pytest.raises(NotImplementedError, match="sample: expected a head of all rows"):
        head.sample(torch.zeros(2, D), *rows_of(0, 2, (1.0,)).values())


@pytest.mark.parametrize("trained", ["hidden", "weight", "bias"])
def test_gradient_is_refused(trained: str) -> None:
    tensors = {"hidden": torch.ones(2, 4), "weight": torch.ones(9, 4), "bias": torch.ones(9)}
    tensors[trained].requires_grad_()
    ids = torch.arange(5, dtype=torch.int32)
    _, log_probs = sparse_sample(active_ids=ids, **tensors, **rows_of(0, 2, (1.0,)))
    with pytest.raises(NotImplementedError, match=f"microspec::sparse_sample: {trained}: expected"):
        log_probs.sum().backward()


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_token_logits_count_as_written(backend: str) -> None:
    microspec_kernels.backend(backend)
    case, rows, logits = head_case(0), rows_of(0, 3, (1.0,)), torch.zeros(3, 50)
    before = logits._version, [tensor._version for tensor in rows.values()]
    sparse_sample(*case.tensors(), **rows, token_logits=logits)
    assert logits._version > before[0]
    assert [tensor._version for tensor in rows.values()] == before[1]
