"""EngineHead: step by step beside an LRU over rows and float64 logits of those."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from microspec_kernels import SparseHead
from microspec_kernels.integrations.engine import EngineHead, Figures, Settings

from .engine_reference import DIM, ROW_TOKENS, ROWS, STRANGE, V, Wanted, hidden_of, weight_of

BOTH = pytest.mark.backends("cpu", "reference")
MODES: list[dict[str, Any]] = [
    {"mode": "indexed"},
    {"mode": "packed"},
    {"mode": "packed", "slab_dtype": "int8"},
    {"mode": "packed", "slab_dtype": "float8_e4m3fn"},
]
PACKED = {"mode": "packed"}


def frequency_file(tmp_path: Any, tokens: list[int]) -> str:
    path = tmp_path / "rank.npy"
    np.save(path, np.array(tokens))
    return str(path)


def state_of(head: EngineHead) -> list[Tensor]:
    """All tensors that a captured graph may have seen, wherever they hang."""
    found: list[Tensor] = []
    seen: set[int] = set()

    def visit(value: Any) -> None:
        if isinstance(value, Tensor):
            found.append(value)
        elif type(value).__module__.startswith("microspec_kernels") and id(value) not in seen:
            seen.add(id(value))
            for name, part in sorted(vars(value).items()):
                parts = part.values() if name in ("_buffers", "_modules") else [part]
                for each in parts:
                    visit(each)

    visit(head)
    return found


@BOTH
@pytest.mark.parametrize("mapped", [False, True], ids=["all rows", "mapped"])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("options", MODES, ids=lambda o: "-".join(o.values()))
def test_every_step(options: dict[str, Any], groups: int, mapped: bool, tmp_path: Any) -> None:
    """Requests come and go, tokens of all kinds come in, most steps evict."""
    rng = torch.Generator().manual_seed(groups)
    frequent = torch.randperm(V, generator=rng)[:20].tolist()
    settings = Settings(capacity=12, frequency=frequency_file(tmp_path, frequent), **options)
    row_tokens = ROW_TOKENS if mapped else None
    weight = weight_of(torch.bfloat16, settings.slab_dtype, ROWS if mapped else V)
    head = EngineHead(weight, settings, groups=groups, target_vocab_size=V, row_tokens=row_tokens)
    wanted = Wanted(weight, 12, groups=groups, row_tokens=row_tokens, initial=frequent)
    addresses = [tensor.data_ptr() for tensor in state_of(head)]
    for step in range(60):
        count = int(torch.randint(0, 9, (), generator=rng))
        tokens = torch.randint(0, V, (count,), generator=rng)
        for place in torch.randperm(count, generator=rng)[: count // 3]:
            tokens[place] = STRANGE[int(torch.randint(len(STRANGE), (), generator=rng))]
        tokens = tokens if step % 2 else tokens.int()
        low = -1 if groups > 1 else 0
        which = torch.randint(low, groups, (count,), generator=rng)
        given = None if groups == 1 else which if step % 3 else which.int()
        head.judge(tokens, given)
        head.observe(tokens, given)
        wanted.step(tokens.tolist(), which.tolist())
        rows = torch.randint(low, groups, (5,), generator=rng).tolist()
        wanted.check(head, hidden_of(rng, 5, torch.bfloat16), rows, f"step {step}")
        if step % 5 == 4:
            head.begin([step % groups])
            if groups > 1:
                wanted.begin([step % groups])
            wanted.check(head, hidden_of(rng, 5, torch.bfloat16), rows, f"begin at {step}")
    assert wanted.hits > 0 < wanted.misses and wanted.entered > 40
    assert [tensor.data_ptr() for tensor in state_of(head)] == addresses


@BOTH
@pytest.mark.parametrize("mapped", [False, True])
def test_all_rows_are_the_dense_head(mapped: bool) -> None:
    """Also of equal logits it takes the one that the dense head's argmax takes."""
    count = ROWS if mapped else V
    weight = weight_of(torch.float32, rows=count)
    row_tokens = ROW_TOKENS if mapped else None
    head = EngineHead(weight, Settings(capacity=10**6), target_vocab_size=V, row_tokens=row_tokens)
    assert head.capacity == count
    head.observe(torch.arange(V).flip(0))
    hidden = hidden_of(torch.Generator().manual_seed(3), 200, torch.float32)
    dense = hidden @ weight.T
    best = torch.tensor([row.nonzero()[0, 0] for row in dense == dense.amax(1, keepdim=True)])
    assert ((dense == dense.amax(1, keepdim=True)).sum(1) > 1).any()
    assert torch.equal(head.argmax(hidden), best if row_tokens is None else row_tokens[best])


def test_logits_are_made_as_the_engine_makes_them() -> None:
    weight = torch.randn(V, DIM)
    options = {"bias": torch.randn(V), "logit_scale": 0.25, "softcap": 2.0}
    for mode in ("indexed", "packed"):
        head = EngineHead(weight, Settings(capacity=V, mode=mode), **options)  # type: ignore
        head.observe(torch.arange(V))
        hidden = torch.randn(4, DIM)
        want = SparseHead(weight, head.vocab, **options)(hidden, 5)  # type: ignore[arg-type]
        for got, expected in zip(head.top_k(hidden, 5), want, strict=True):
            torch.testing.assert_close(got, expected)


@BOTH
@pytest.mark.parametrize("options", MODES, ids=lambda o: "-".join(o.values()))
def test_slots_for_an_engine_that_chooses_itself(options: dict[str, Any]) -> None:
    """Slot by slot the logit of its token, -inf where a slot is empty."""
    settings = Settings(capacity=12, **options)
    weight = weight_of(torch.bfloat16, settings.slab_dtype, ROWS)
    head = EngineHead(weight, settings, target_vocab_size=V, row_tokens=ROW_TOKENS)
    rng = torch.Generator().manual_seed(3)
    hidden = hidden_of(rng, 5, torch.bfloat16)
    row_of = {int(token): row for row, token in enumerate(ROW_TOKENS)}
    for step in range(10):
        head.observe(torch.randint(0, V, (3,), generator=rng))
        logits, tokens = head.slot_logits(hidden), head.slot_tokens()
        assert (logits.dtype, tokens.dtype) == (torch.float32, torch.int64)
        assert logits.shape == (5, 12) and tokens.shape == (1, 12)
        for slot, token in enumerate(tokens[0].tolist()):
            nothing = torch.full((5,), -torch.inf, dtype=torch.float64)
            row = nothing if token < 0 else hidden.double() @ weight[row_of[token]].double()
            assert torch.equal(logits[:, slot].double(), row), f"step {step}, slot {slot}"
        assert head.figures().active == (tokens >= 0).sum()  # type: ignore[union-attr]
    assert (tokens >= 0).all()


def test_begins_with_the_frequent_tokens_that_the_draft_has(tmp_path: Any) -> None:
    """As many as there is room for; the rarest is evicted first."""
    absent = next(t for t in range(V) if t not in ROW_TOKENS.tolist())
    known = ROW_TOKENS[:6].tolist()
    settings = Settings(capacity=4, frequency=frequency_file(tmp_path, [absent, V + 3, *known]))
    head = EngineHead(
        weight_of(torch.float32, rows=ROWS), settings, target_vocab_size=V, row_tokens=ROW_TOKENS
    )

    def active() -> set[int]:
        return {int(ROW_TOKENS[row]) for row in head.vocab.ids[0].tolist()}

    assert active() == set(known[:4])
    head.observe(torch.tensor([known[5]]))
    assert active() == {*known[:3], known[5]}
    assert head.figures() == Figures(hits=0, misses=0, rows=1, active=4)


@pytest.mark.parametrize("tokens", [[], [-1], [V, V + 1]])
def test_a_list_that_the_draft_has_no_token_of(tmp_path: Any, tokens: list[int]) -> None:
    settings = Settings(frequency=frequency_file(tmp_path, tokens or np.zeros(0, int)))  # type: ignore
    message = "frequency: expected at least one token that the draft has a row for, got none"
    with pytest.raises(ValueError, match=message):
        EngineHead(weight_of(torch.float32), settings)


def test_a_target_with_more_tokens_than_the_draft() -> None:
    """Without a map, too: the first rows are the first tokens, and the others have none."""
    head = EngineHead(weight_of(torch.float32, rows=ROWS), Settings(), target_vocab_size=V)
    tokens = torch.tensor([ROWS - 1, ROWS, V - 1, V])
    head.observe(tokens)
    head.judge(tokens)
    assert head.figures() == Figures(hits=1, misses=2, rows=1, active=1)


def test_a_target_with_fewer_tokens_than_rows() -> None:
    """What pads the head is never proposed."""
    head = EngineHead(weight_of(torch.float32), Settings(), target_vocab_size=ROWS)
    head.observe(torch.arange(V))
    head.judge(torch.arange(V))
    assert head.figures() == Figures(hits=ROWS, misses=0, rows=ROWS, active=ROWS)


@pytest.mark.parametrize(
    ("row_tokens", "kind", "message"),
    [
        (ROW_TOKENS[1:], ValueError, r"shape \[41\], got \[40\]"),
        (ROW_TOKENS[:, None], ValueError, r"shape \[41\], got \[41, 1\]"),
        (ROW_TOKENS.float(), TypeError, "integers, got torch.float32"),
        (ROW_TOKENS > 3, TypeError, "integers, got torch.bool"),
        (ROW_TOKENS - 1, ValueError, r"tokens in \[0, 60\), got -1"),
        (ROW_TOKENS + 1, ValueError, r"tokens in \[0, 60\), got 60"),
        (ROW_TOKENS.clamp(min=7), ValueError, "a token of its own for each row, got 7 for several"),
    ],
)
def test_a_map_that_is_none(row_tokens: Tensor, kind: type[Exception], message: str) -> None:
    assert 0 in ROW_TOKENS and V - 1 in ROW_TOKENS
    weight = weight_of(torch.float32, rows=ROWS)
    with pytest.raises(kind, match=f"^microspec: row_tokens: expected {message}$"):
        EngineHead(weight, Settings(), target_vocab_size=V, row_tokens=row_tokens)


def test_maps_of_any_integers() -> None:
    weight = weight_of(torch.float32, rows=ROWS)
    for dtype in (torch.int32, torch.int64, torch.int16):
        head = EngineHead(weight, Settings(), target_vocab_size=V, row_tokens=ROW_TOKENS.to(dtype))
        head.observe(ROW_TOKENS[4:5])
        assert head.argmax(torch.ones(1, DIM)).tolist() == [int(ROW_TOKENS[4])]


def test_an_empty_vocabulary_proposes_token_0() -> None:
    head = EngineHead(weight_of(torch.float32), Settings(), groups=2)
    groups = torch.tensor([0, -1, 1])
    assert head.argmax(torch.ones(3, DIM), groups).tolist() == [0, 0, 0]
    head.observe(torch.tensor([9]), torch.tensor([1]))
    assert head.argmax(torch.ones(3, DIM), groups).tolist() == [0, 0, 9]
    assert head.argmax(torch.full((3, DIM), float("nan")), groups.clamp(max=0)).tolist() == [0] * 3


def test_several_vocabularies_need_to_be_told_apart() -> None:
    head = EngineHead(weight_of(torch.float32), Settings(), groups=2)
    tokens = torch.tensor([1, 2])
    with pytest.raises(ValueError, match=r"judge: groups: expected each token's, .* 2, got None"):
        head.judge(tokens)
    with pytest.raises(ValueError, match="tokens: expected"):
        head.observe(tokens)
    with pytest.raises(ValueError, match="group_ids: expected"):
        head.argmax(torch.ones(2, DIM))
    assert head.figures() == Figures(0, 0, 0, 0)


def test_coverage_is_of_the_vocabulary_before() -> None:
    """Tokens without a row are misses, also in the fading share; -1 and strange ones nothing."""
    head = EngineHead(
        weight_of(torch.float32, rows=ROWS),
        Settings(),
        target_vocab_size=V,
        row_tokens=ROW_TOKENS,
    )
    absent = [t for t in range(V) if t not in ROW_TOKENS.tolist()][:3]
    tokens = torch.tensor([*ROW_TOKENS[:5].tolist(), *absent, *STRANGE])
    figures = head.figures()
    assert figures is not None and figures.coverage is None
    head.judge(tokens)
    assert head.figures() == Figures(hits=0, misses=8, rows=0, active=0)
    head.observe(tokens)
    head.coverage.reset()
    head.judge(tokens)
    figures = head.figures()
    assert figures == Figures(hits=5, misses=3, rows=5, active=5)
    assert figures is not None and figures.coverage == 5 / 8
    assert float(head.coverage.recent) == pytest.approx(5 / 8)


@pytest.mark.parametrize("options", MODES, ids=lambda o: "-".join(o.values()))
def test_a_weight_that_changed_in_place(options: dict[str, Any]) -> None:
    settings = Settings(**options)
    slab = settings.slab_dtype
    weight = weight_of(torch.float32, slab)
    head = EngineHead(weight, settings, groups=2)
    tokens = torch.arange(0, V, 2)
    groups = (tokens > 30).long()
    head.observe(tokens, groups)
    wanted = Wanted(weight, V, groups=2)
    wanted.step(tokens.tolist(), groups.tolist())
    wanted.hits = wanted.misses = 0
    hidden = hidden_of(torch.Generator().manual_seed(8), 6, torch.float32)
    addresses = [tensor.data_ptr() for tensor in state_of(head)]
    rows = [0, 1, 0, -1, 1, 1]
    wanted.check(head, hidden, rows, "before")
    weight.copy_(weight_of(torch.float32, slab, seed=2))
    wanted.weight = weight.double()
    if head.settings.mode == "packed":
        with pytest.raises(AssertionError):
            wanted.check(head, hidden, rows, "a slab of the old weight")
    head.reload()
    wanted.check(head, hidden, rows, "after")
    assert [tensor.data_ptr() for tensor in state_of(head)] == addresses


def test_a_slab_takes_no_more_than_its_rows() -> None:
    """A second buffer would double the memory, and the rows gathered."""
    head = EngineHead(weight_of(torch.bfloat16), Settings(capacity=8, mode="packed"), groups=2)
    assert head.head.slab.rows.shape == (2, 8, DIM)  # type: ignore[union-attr]


@pytest.mark.parametrize("made_inside", [False, True])
@pytest.mark.parametrize("mode", ["indexed", "packed"])
def test_inference_mode(made_inside: bool, mode: Any) -> None:
    """As engines run: made while models load, used where nothing is recorded for gradients."""
    weight = torch.nn.Parameter(weight_of(torch.float32))
    with torch.inference_mode(made_inside):
        head = EngineHead(weight, Settings(capacity=8, mode=mode), groups=2)
    with torch.inference_mode():
        tokens, groups = torch.tensor([3, 4]), torch.tensor([0, 1])
        head.judge(tokens, groups)
        head.observe(tokens, groups)
        head.begin([0])
        head.reload()
        assert head.argmax(torch.ones(2, DIM), groups).tolist() == [0, 4]
        assert head.figures() == Figures(hits=0, misses=2, rows=2, active=1)


def test_shared_vocabularies_stay_when_requests_begin() -> None:
    head = EngineHead(weight_of(torch.float32), Settings())
    head.observe(torch.tensor([3, 4]))
    head.begin([0])
    assert head.figures() == Figures(hits=0, misses=0, rows=2, active=2)


@pytest.mark.parametrize("options", MODES, ids=lambda o: "-".join(o.values()))
@pytest.mark.parametrize("groups", [1, 2])
def test_restart(options: dict[str, Any], groups: int, tmp_path: Any) -> None:
    """Vocabularies, figures and slab as of a head made anew, where they were."""
    settings = Settings(capacity=8, frequency=frequency_file(tmp_path, [5, 9, 2]), **options)
    weight = weight_of(torch.float32, settings.slab_dtype)
    head, fresh = (EngineHead(weight, settings, groups=groups) for _ in range(2))
    addresses = [tensor.data_ptr() for tensor in state_of(head)]
    tokens, which = torch.arange(20, 40), torch.arange(20) % groups
    given = which if groups > 1 else None
    head.judge(tokens, given)
    head.observe(tokens, given)
    assert head.figures() != fresh.figures()
    head.restart()
    assert head.figures() == fresh.figures() == Figures(0, 0, 0, active=3 * groups)
    hidden = hidden_of(torch.Generator().manual_seed(4), 6, torch.float32)
    rows = torch.arange(6) % groups if groups > 1 else None
    for got, want in zip(head.top_k(hidden, 5, rows), fresh.top_k(hidden, 5, rows), strict=True):
        assert torch.equal(got, want)
    for name, want in fresh.vocab.state_dict().items():
        assert torch.equal(head.vocab.state_dict()[name], want), name
    assert head.coverage.recent.isnan().all()
    assert [tensor.data_ptr() for tensor in state_of(head)] == addresses


class Late:
    """As a copy from a GPU: what comes is of the call before."""

    def __init__(self) -> None:
        self.on_its_way: Tensor | None = None

    def poll(self, value: Tensor) -> Tensor | None:
        arrived, self.on_its_way = self.on_its_way, value.clone()
        return arrived


def test_no_figures_of_before_a_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("microspec_kernels.integrations.engine.head.HostCopy", Late)
    head = EngineHead(weight_of(torch.float32), Settings())
    head.observe(torch.tensor([3, 4]))
    assert head.figures() is None
    head.restart()
    assert head.figures() is None
    assert head.figures() == Figures(0, 0, 0, 0)


class Recorder:
    """In the place of a copy to the host."""

    def __init__(self) -> None:
        self.values: list[Tensor] = []

    def poll(self, value: Tensor) -> None:
        self.values.append(value)


def test_nothing_waits_for_the_device() -> None:
    """A meta tensor has no value to wait for."""
    head = EngineHead(
        weight_of(torch.float32, rows=ROWS),
        Settings(),
        groups=2,
        target_vocab_size=V,
        row_tokens=ROW_TOKENS,
    )
    owners = (head, head.vocab, head.coverage, head.rows)
    for owner in owners:
        for name, value in vars(owner).items():
            if isinstance(value, Tensor):
                setattr(owner, name, value.to("meta"))
    head.head.to("meta")
    recorder = Recorder()
    head._host_copy = recorder  # type: ignore[assignment]
    tokens = torch.zeros(7, dtype=torch.int64, device="meta")
    groups = torch.zeros(7, dtype=torch.int32, device="meta")
    head.judge(tokens, groups)
    head.observe(tokens, groups)
    head.begin(groups)
    assert head.argmax(torch.zeros(7, DIM, device="meta"), groups).device.type == "meta"
    assert head.figures() is None, "none has arrived"
    assert [(value.shape, value.device.type) for value in recorder.values] == [((4,), "meta")]
