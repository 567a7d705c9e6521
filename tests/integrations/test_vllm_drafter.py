"""vLLM's plugin: the LM head as the draft model itself uses it, and the steps of the target."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from microspec_kernels.integrations.engine import Refused, Settings, Shard
from microspec_kernels.integrations.vllm.attach import attach
from microspec_kernels.integrations.vllm.draft_lm_head import DraftLMHead
from microspec_kernels.integrations.vllm.drafter import Drafter
from microspec_kernels.integrations.vllm.metrics import Metrics

from .fake_vllm import DraftModel, LogitsProcessor, VocabParallelEmbedding, config, installed

V, ROWS, DIM, PADDED = 24, 10, 8, 16
OFFSETS = torch.tensor([2, 2, 2, 5, 5, 5, 9, 9, 9, 14])
TOKENS = torch.arange(ROWS) + OFFSETS


@pytest.fixture(autouse=True)
def _vllm() -> Any:
    with installed():
        yield


def draft_model(offsets: Tensor | None = None) -> DraftModel:
    torch.manual_seed(3)
    rows = V if offsets is None else ROWS
    weight = torch.randn(rows + PADDED - rows % PADDED, DIM)
    weight[rows:] = 100.0  # padding: never to be read
    return DraftModel(weight, rows, V, offsets)


def drafter_of(model: Any, slots: int = 4, **settings: Any) -> Drafter:
    return attach("Speculator", model, config(DIM, V), Settings(**settings), slots)


def learn(drafter: Drafter, tokens: Tensor) -> None:
    drafter.begin([0], [tokens.tolist()])


def logits_for(tokens: list[list[int]]) -> Tensor:
    """[R, V]: tokens of each row by rising logit."""
    logits = torch.zeros(len(tokens), V)
    for row, best in enumerate(tokens):
        logits[row, best] = torch.arange(1.0, 1 + len(best))
    return logits


def step(
    drafter: Drafter,
    text: list[int],
    slots: list[int],
    sampled: list[list[int]],
    best: list[list[int]] | None = None,
    drafted: list[bool] | None = None,
) -> None:
    """A step over one row and one token of text for each slot."""
    groups = torch.tensor(slots)
    drafter.keep(logits_for(best or [[token] for token in text]), groups)
    verified = torch.tensor(drafted or [True] * len(slots))
    drafter.observe(
        torch.tensor(text), torch.tensor(sampled), verified, groups, torch.ones_like(groups)
    )


def active(drafter: Drafter, group: int = 0) -> set[int]:
    ids = drafter.head.vocab.ids[group]
    return set(drafter.head.rows.tokens(ids[ids >= 0].long()).tolist())


@pytest.mark.parametrize("offsets", [None, OFFSETS])
@pytest.mark.parametrize("mode", ["indexed", "packed"])
def test_drafts_as_the_model_does_with_all_tokens_active(offsets: Any, mode: str) -> None:
    model = draft_model(offsets)
    drafter = drafter_of(model, mode=mode)
    learn(drafter, torch.arange(V))
    hidden = torch.randn(40, DIM)
    drafted = drafter.draft(hidden, torch.zeros(40, dtype=torch.int64))
    assert torch.equal(drafted, model.compute_logits(hidden).argmax(-1))
    assert drafted.dtype == torch.int64 and len(set(drafted.tolist())) > 5


def test_what_the_model_does_before_its_head_is_done() -> None:
    model = draft_model()
    model.norm = lambda hidden: -hidden.roll(1, -1)
    model.bias = torch.randn(PADDED * 2)[: len(model.lm_head.weight)]
    drafter = drafter_of(model)
    learn(drafter, torch.arange(V))
    hidden = torch.randn(40, DIM)
    want = model.compute_logits(hidden).argmax(-1)
    assert torch.equal(drafter.draft(hidden, torch.zeros(40)), want)


def test_the_model_is_itself_again_afterwards() -> None:
    model = draft_model()
    hidden = torch.randn(4, DIM)
    before = model.compute_logits(hidden)
    drafter_of(model).draft(hidden, torch.zeros(4))
    assert torch.equal(model.compute_logits(hidden), before)


def test_another_head_at_draft_time() -> None:
    model = draft_model()
    drafter = drafter_of(model)
    model.lm_head = VocabParallelEmbedding(model.lm_head.weight.data.clone(), V)
    with pytest.raises(Refused, match="the draft's LM head: expected the one that was attached to"):
        drafter.draft(torch.randn(1, DIM), torch.zeros(1))


def test_a_model_without_a_logits_processor() -> None:
    model = draft_model()
    weight = model.lm_head.weight
    model.compute_logits = lambda hidden: hidden @ weight.T  # type: ignore[method-assign]
    with pytest.raises(Refused, match="compute_logits: expected a call of the model's LogitsProc"):
        drafter_of(model)


def test_a_map_other_than_the_models_own() -> None:
    model = draft_model(OFFSETS)
    model.compute_logits = lambda hidden: model.logits_processor(model.lm_head, hidden)  # type: ignore[method-assign]
    with pytest.raises(Refused, match="expected logits of the 10 tokens of its LM head"):
        drafter_of(model)


def test_logits_of_padding_are_not_taken_for_tokens() -> None:
    model = draft_model()
    model.logits_processor = LogitsProcessor(PADDED * 2)
    with pytest.raises(Refused, match="expected logits of the 24 tokens of its LM head, got of 32"):
        drafter_of(model)


def test_a_head_that_is_not_served() -> None:
    model = draft_model()
    model.lm_head.quant_method = object()
    with pytest.raises(Refused, match=r"Embedding\.quant_method: expected none, got object"):
        drafter_of(model)


def test_each_rank_attaches_to_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 24 rows, in shards of 16: the second one has 8, and padding behind them."""
    model = draft_model()
    model.bias = torch.zeros(32)
    layer, groups = model.lm_head, SimpleNamespace(device_group="the ranks")
    whole, tokens = layer.weight.detach(), torch.arange(V)
    layer.weight = nn.Parameter(whole[16:], requires_grad=False)
    layer.tp_size, layer.tp_rank = 2, 1
    layer.shard_indices = SimpleNamespace(org_vocab_start_index=16, org_vocab_end_index=24)
    monkeypatch.setattr(DraftLMHead, "tokens", lambda self, hidden: tokens)  # needs both ranks
    made: list[Any] = []

    def record(weight: Tensor, settings: Settings, **options: Any) -> None:
        made.append((weight, options))
        raise ValueError("enough")

    monkeypatch.setattr("microspec_kernels.integrations.vllm.attach.EngineHead", record)
    states = {"get_tp_group": lambda: groups}
    with installed(**{"vllm.distributed.parallel_state": states}):
        model.logits_processor = LogitsProcessor(V)
        with pytest.raises(Refused, match="enough"):
            drafter_of(model)
    [(weight, options)] = made
    assert torch.equal(weight, whole[16:24]) and len(options["bias"]) == 8
    assert options["shard"] == Shard(V, 16, "the ranks")  # type: ignore[arg-type]


def test_settings_that_this_draft_cannot_have() -> None:
    with pytest.raises(Refused, match="vllm: Speculator: expected settings for this draft, got"):
        drafter_of(draft_model(), frequency="absent.npy")


def test_says_once_what_it_is_attached_to(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "vllm"):
        drafter_of(draft_model(OFFSETS), vocabulary="request", capacity=6)
    [record] = caplog.records
    assert record.name.startswith("vllm.")  # or vLLM would not show it
    for part in ("Speculator", "DraftModel", "[10, 8] float32", "K = 6", "4 vocabularies", "0.32"):
        assert part in record.getMessage()


def test_a_step_lets_in_the_text_the_targets_best_and_the_sampled() -> None:
    drafter = drafter_of(draft_model(), capacity=4)
    step(drafter, [1, 2], [0, 1], [[5, 6, -1], [7, -1, -1]], best=[[3], [4]])
    assert active(drafter) == {4, 5, 6, 7}  # the newest of 1 2 3 4 5 6 7


def test_the_likeliest_of_several_is_the_newest() -> None:
    drafter = drafter_of(draft_model(), capacity=4, top_k=3)
    step(drafter, [1], [0], [[-1]], best=[[8, 9, 3, 4, 5]])
    assert active(drafter) == {1, 3, 4, 5}
    step(drafter, [1], [0], [[-1]], best=[[6, 5, 4]])
    learn(drafter, torch.tensor([20, 21]))
    assert active(drafter) == {4, 5, 20, 21}


def test_logits_are_read_before_a_sampler_writes_into_them() -> None:
    drafter = drafter_of(draft_model(), capacity=8)
    logits = logits_for([[3]])
    drafter.keep(logits, torch.zeros(1))
    logits.copy_(logits_for([[9]]))
    none = torch.full((1, 1), -1)
    groups = torch.zeros(1, dtype=torch.int64)
    drafter.observe(groups[:0], none, torch.tensor([True]))
    assert active(drafter) == {3}


def test_each_request_has_its_own() -> None:
    drafter = drafter_of(draft_model(), vocabulary="request", capacity=8)
    drafter.begin([2, 0], [[11, 12], []])
    step(drafter, [1, 2], [2, 0], [[5, -1], [7, 8]], best=[[3], [4]])
    assert active(drafter, 2) == {11, 12, 1, 3, 5} and active(drafter, 0) == {2, 4, 7, 8}
    drafter.begin([2], [[13]])
    assert active(drafter, 2) == {13} and active(drafter, 0) == {2, 4, 7, 8}
    hidden = torch.randn(3, DIM)
    drafted = drafter.draft(hidden, torch.tensor([2, 0, -1])).tolist()
    assert drafted[0] == 13 and drafted[1] in {2, 4, 7, 8} and drafted[2] == 0


def test_also_the_only_slot_begins_anew() -> None:
    drafter = drafter_of(draft_model(), slots=1, vocabulary="request", capacity=8)
    step(drafter, [1], [0], [[5]])
    drafter.begin([0], [[9]])
    assert active(drafter) == {9}


def test_a_shared_one_goes_on_when_requests_come_and_go() -> None:
    drafter = drafter_of(draft_model(), capacity=8)
    step(drafter, [1], [3], [[5]])
    drafter.begin([3], [[9]])
    assert active(drafter) == {1, 5, 9}
    drafter.begin([0, 1], [[], []])
    assert active(drafter) == {1, 5, 9}


def test_coverage_is_of_tokens_that_were_drafted_for() -> None:
    drafter = drafter_of(draft_model(), capacity=8, vocabulary="request")
    drafter.begin([0, 1], [[5, 6], [5]])
    step(drafter, [1, 1], [0, 1], [[5, 7, 6], [5, 6, -1]], drafted=[True, False])
    figures = drafter.figures()
    assert (figures["hits"], figures["misses"]) == (2, 1)
    step(drafter, [1, 1], [0, 1], [[7, -1, -1], [9, -1, -1]], drafted=[True, True])
    assert (drafter.figures()["hits"], drafter.figures()["misses"]) == (3, 2)


def test_drafting_without_having_seen_the_target() -> None:
    drafter = drafter_of(draft_model())
    step(drafter, [1], [0], [[5]])
    groups = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(Refused, match="the target's sampler: expected a call of it before draft"):
        drafter.observe(groups, groups[:, None], groups > 0)


def test_begins_anew_after_warming_up(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    np.save(tmp_path / "rank.npy", np.array([3, 4]))
    drafter = drafter_of(draft_model(), capacity=2, frequency=str(tmp_path / "rank.npy"))
    told: list[str] = []
    monkeypatch.setattr(Metrics, "restart", lambda self: told.append("restart"))
    step(drafter, [1], [0], [[5]])
    assert active(drafter) == {1, 5}
    drafter.restart()
    assert told == ["restart"]
    assert active(drafter) == {3, 4}
    assert drafter.figures() == {
        "hits": 0, "misses": 0, "rows": 0, "active": 2, "coverage": None
    }  # fmt: skip


def test_weights_that_are_loaded_again_in_place() -> None:
    model = draft_model()
    drafter = drafter_of(model, mode="packed")
    learn(drafter, torch.arange(V))
    hidden = torch.randn(40, DIM)
    groups = torch.zeros(40)
    before = drafter.draft(hidden, groups)
    model.lm_head.weight.data.copy_(model.lm_head.weight.data.roll(1, 1))
    drafter.reload()
    want = model.compute_logits(hidden).argmax(-1)
    assert torch.equal(drafter.draft(hidden, groups), want) and not torch.equal(before, want)


def test_weights_that_are_loaded_elsewhere() -> None:
    model = draft_model()
    drafter = drafter_of(model)
    model.lm_head.weight.data = model.lm_head.weight.data.clone()
    with pytest.raises(Refused, match="reload_weights: expected the draft's LM head at its old"):
        drafter.reload()
