# SPDX-License-Identifier: Apache-2.0
"""vLLM's plugin finds the LM head and uses it like the draft model does."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from microspec_kernels.engine import Settings, Shard
from microspec_kernels.integrations.hooks import UnsupportedError
from microspec_kernels.integrations.vllm.attach import attach
from microspec_kernels.integrations.vllm.draft_lm_head import DraftLMHead
from microspec_kernels.integrations.vllm.drafter import Drafter

from .fake_vllm import (
    TARGET,
    DraftModel,
    LogitsProcessor,
    VocabParallelEmbedding,
    config,
    installed,
)
from .stored_layers import READABLE

V, ROWS, DIM, PADDED = 24, 10, 8, 16
OFFSETS = torch.tensor([2, 2, 2, 5, 5, 5, 9, 9, 9, 14])


@pytest.fixture(autouse=True)
def _vllm() -> Any:
    with installed():
        yield


def draft_model(offsets: Tensor | None = None) -> DraftModel:
    torch.manual_seed(3)
    rows = V if offsets is None else ROWS
    weight = torch.randn(rows + PADDED - rows % PADDED, DIM)
    weight[rows:] = 100.0  # padding, which must not be read
    return DraftModel(weight, rows, V, offsets)


def save_words(folder: Path, count: int) -> None:
    """Write a tokenizer whose odd tokens are words, which lead in the prior's order."""
    tokenizers = pytest.importorskip("tokenizers")
    texts = {("Ġword" if token % 2 else "part") + str(token): token for token in range(count)}
    tokenizers.Tokenizer(tokenizers.models.BPE(texts, [])).save(str(folder / "tokenizer.json"))


def attached(*arguments: Any, **options: Any) -> Drafter:
    drafter = attach(*arguments, target=TARGET, **options)
    assert drafter is not None
    return drafter


def drafter_of(
    model: Any, slots: int = 4, *, hidden_size: int = DIM, compute: Any = None, **settings: Any
) -> Drafter:
    return attached(
        "Speculator",
        model,
        config(V),
        Settings(**({"capacity": V, "target_top_k": 1, "learn": False} | settings)),
        slots,
        hidden_size=hidden_size,
        compute_logits=compute,
    )


def learn(drafter: Drafter, tokens: Tensor) -> None:
    drafter.begin([0], [tokens])


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
    with pytest.raises(
        UnsupportedError, match="the draft's LM head: expected the one that was attached to"
    ):
        drafter.draft(torch.randn(1, DIM), torch.zeros(1))


def test_a_model_without_a_logits_processor() -> None:
    model = draft_model()
    weight = model.lm_head.weight
    model.compute_logits = lambda hidden: hidden @ weight.T  # type: ignore[method-assign]
    with pytest.raises(
        UnsupportedError, match="compute_logits: expected a call of the model's LogitsProc"
    ):
        drafter_of(model)


def wide(model: DraftModel, streams: int = 2) -> DraftModel:
    """Let the model's output be several streams of D columns, as DeepSeek-V4's is."""
    model.norm = lambda hidden: hidden.view(-1, streams, DIM).sum(1)
    return model


def test_hidden_states_wider_than_the_draft() -> None:
    model = wide(draft_model())
    drafter = drafter_of(model, hidden_size=2 * DIM)
    learn(drafter, torch.arange(V))
    hidden = torch.randn(40, 2 * DIM)
    assert torch.equal(
        drafter.draft(hidden, torch.zeros(40)), model.compute_logits(hidden).argmax(-1)
    )


def test_hidden_states_that_the_model_cannot_take() -> None:
    with pytest.raises(
        UnsupportedError,
        match=r"compute_logits: expected logits of hidden states \[1, 8\], got Run",
    ):
        drafter_of(wide(draft_model(), streams=3))


def modules(model: DraftModel, heads: list[Any]) -> Any:
    """Return the logits of a module for each step, with a norm and a head of its own."""

    def compute(hidden: Tensor, step: int) -> Tensor:
        return model.logits_processor(heads[step % len(heads)], hidden.roll(step, -1))

    return compute


def test_a_module_for_each_step_with_one_head() -> None:
    model = draft_model()
    compute = modules(model, [model.lm_head])
    drafter = drafter_of(model, compute=compute)
    learn(drafter, torch.arange(V))
    hidden = torch.randn(40, DIM)
    drafts = [drafter.draft(hidden, torch.zeros(40), step) for step in range(3)]
    assert all(torch.equal(d, compute(hidden, i).argmax(-1)) for i, d in enumerate(drafts))
    assert not torch.equal(drafts[0], drafts[1])


def own_heads(model: DraftModel) -> list[Any]:
    """Return a head for each of two modules, the first the model's; the model has both."""
    other = VocabParallelEmbedding(model.lm_head.weight.data.flip(0).clone(), V)
    other.weight.data[V:] = 100.0
    other.weight.data[:V] = torch.randn(V, DIM)
    model.other = other
    return [model.lm_head, other]


@pytest.mark.parametrize("settings", [{}, {"mode": "packed"}, {"capacity": 7}], ids=str)
@pytest.mark.parametrize("moved", [False, True], ids=["as they are", "normed"])
def test_modules_with_heads_of_their_own(settings: Any, moved: bool) -> None:
    """Step 2 is the first module's again. All heads follow one vocabulary."""
    model = draft_model()
    heads = own_heads(model)
    compute = modules(model, heads)
    if not moved:
        compute = lambda hidden, step: model.logits_processor(heads[step % 2], hidden)  # noqa: E731
    drafter = drafter_of(model, compute=compute, **settings)
    hidden = torch.randn(40, DIM)
    for tokens in (torch.arange(0, 14, 2), torch.tensor([1, 3]), torch.arange(V)):
        drafter.begin([0], [tokens])
        active = sorted(drafter.head.slot_tokens()[0].tolist())
        active = [token for token in active if token >= 0]
        for step in range(3):
            logits = compute(hidden, step)
            best = torch.tensor(active)[logits[:, active].argmax(-1)]
            assert torch.equal(drafter.draft(hidden, None, step), best)
            wide = torch.full_like(logits, -torch.inf)
            wide[:, active] = logits[:, active]
            drawn = drafter.draw(lambda step=step: compute(hidden, step), None, step)
            torch.testing.assert_close(drawn, wide)


def test_the_heads_of_all_modules_are_loaded_again() -> None:
    model = draft_model()
    heads = own_heads(model)
    compute = modules(model, heads)
    drafter = drafter_of(model, compute=compute, mode="packed")
    learn(drafter, torch.arange(V))
    hidden = torch.randn(40, DIM)
    before = drafter.draft(hidden, None, 1)
    heads[1].weight.data[:V] = heads[1].weight.data[:V].roll(1, 1)
    drafter.reload()
    want = compute(hidden, 1).argmax(-1)
    assert torch.equal(drafter.draft(hidden, None, 1), want) and not torch.equal(before, want)
    heads[1].weight.data = heads[1].weight.data.clone()
    with pytest.raises(UnsupportedError, match="reload_weights"):
        drafter.reload()


def test_heads_that_differ_in_their_rows() -> None:
    model = draft_model()
    heads = own_heads(model)
    heads[1] = VocabParallelEmbedding(model.lm_head.weight.data[: V - 4].clone(), V - 4)
    with pytest.raises(UnsupportedError, match="head in step 1: expected the rows, columns and sh"):
        drafter_of(model, compute=modules(model, heads))


def test_the_log_tells_the_number_of_heads(caplog: pytest.LogCaptureFixture) -> None:
    model = draft_model()
    with caplog.at_level("INFO", "vllm"):
        drafter_of(model, compute=modules(model, own_heads(model)))
    assert ", 2 LM heads, vLLM" in caplog.text


def test_a_map_other_than_the_models_own() -> None:
    model = draft_model(OFFSETS)
    model.compute_logits = lambda hidden: model.logits_processor(model.lm_head, hidden)  # type: ignore[method-assign]
    with pytest.raises(UnsupportedError, match="expected logits of the 10 tokens of its LM head"):
        drafter_of(model)


def test_logits_of_padding_are_not_taken_for_tokens() -> None:
    model = draft_model()
    model.logits_processor = LogitsProcessor(PADDED * 2)
    with pytest.raises(
        UnsupportedError, match="expected logits of the 24 tokens of its LM head, got of 32"
    ):
        drafter_of(model)


def test_a_head_that_is_not_served() -> None:
    model = draft_model()
    model.lm_head.quant_method = object()
    with pytest.raises(
        UnsupportedError, match=r"Embedding\.quant_method: expected none, or .* got 'object' object"
    ):
        drafter_of(model)


def quantised(stored: Any) -> DraftModel:
    """Return a model whose head holds a quantised layer's tensors and uses its method."""
    model = draft_model()
    head, processor = model.lm_head, model.logits_processor
    del head.weight
    for name, value in vars(stored).items():
        setattr(head, name, value)
    model.bias = torch.randn(V)
    processor.forward = lambda head, states, bias: head.quant_method.apply(head, states, bias)  # type: ignore
    model.embed = nn.Parameter(torch.zeros(1))  # tells the device
    return model


@pytest.mark.parametrize("name", READABLE)
def test_quantised_heads(name: str) -> None:
    model = quantised(READABLE[name](torch.randn(V, 64)))
    drafter = drafter_of(model, hidden_size=64)
    learn(drafter, torch.arange(V))
    hidden = torch.randn(40, 64)
    values = model.lm_head.quant_method.values
    want = (hidden @ values.T + model.bias).argmax(-1)
    assert torch.equal(drafter.draft(hidden, torch.zeros(40)), want)
    drafter.reload()
    model.lm_head.weight = model.lm_head.weight.clone()
    with pytest.raises(UnsupportedError, match="reload_weights"):
        drafter.reload()


def test_scales_that_are_loaded_again() -> None:
    """The plugin's copy of swizzled scales follows the engine's."""
    model = quantised(READABLE["nvfp4, CUTLASS"](torch.randn(V, 64)))
    drafter = drafter_of(model, hidden_size=64)
    learn(drafter, torch.arange(V))
    model.lm_head.weight_scale.view(torch.uint8).zero_()
    drafter.reload()
    assert model.bias is not None
    assert drafter.draft(torch.randn(1, 64), torch.zeros(1)).item() == model.bias.argmax()


@pytest.mark.parametrize(("readable", "slab"), [(True, "int8"), (False, "int8"), (False, None)])
def test_a_quantised_copy_of_an_unquantised_head(readable: bool, slab: str | None) -> None:
    """vLLM's draft_lm_head_quantization: a slab is quantised from the original."""
    rows = torch.randn(V, 64)
    stored = READABLE["nvfp4, CUTLASS"](rows)
    if not readable:
        stored.weight = torch.zeros(4, V * 8, dtype=torch.int32)
    model = quantised(stored)
    original = VocabParallelEmbedding(rows, V)
    mode = "indexed" if slab is None else "packed"
    copies = "vllm.model_executor.layers.quantization.online.lm_head"
    with installed(**{copies: {"_SOURCES": {model.lm_head: (original, "nvfp4")}}}):
        model.logits_processor.__class__ = LogitsProcessor
        drafter = drafter_of(model, hidden_size=64, mode=mode, slab_dtype=slab)
    learn(drafter, torch.arange(V))
    hidden = torch.randn(40, 64)
    drafts, wanted = drafter.draft(hidden, torch.zeros(40)), hidden @ rows.T + model.bias
    best = wanted.gather(1, drafts[:, None])[:, 0]
    assert (wanted.max(1).values - best < 0.3).all()  # 8 bits a column; 4 bits are 1 away
    assert drafter.head._weight.data_ptr() == original.weight.data_ptr()


def test_each_rank_attaches_to_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 24 rows in shards of 16, the second shard has 8, and then padding."""
    model = draft_model()
    model.bias = torch.zeros(32)
    layer = model.lm_head
    groups = SimpleNamespace(device_group="the ranks", all_gather=lambda part, dim: (part, dim))
    whole, tokens = layer.weight.detach(), torch.arange(V)
    layer.weight = nn.Parameter(whole[16:], requires_grad=False)
    layer.tp_size, layer.tp_rank = 2, 1
    layer.shard_indices = SimpleNamespace(org_vocab_start_index=16, org_vocab_end_index=24)
    monkeypatch.setattr(DraftLMHead, "tokens", lambda *_: tokens)  # needs both ranks
    calls: list[Any] = []

    def record(weight: Tensor, settings: Settings, **options: Any) -> None:
        calls.append((weight, options))
        raise ValueError("enough")

    monkeypatch.setattr("microspec_kernels.integrations.vllm.attach.EngineHead", record)
    states = {"get_tp_group": lambda: groups}
    with installed(**{"vllm.distributed.parallel_state": states}):
        model.logits_processor = LogitsProcessor(V)
        with pytest.raises(UnsupportedError, match="enough"):
            drafter_of(model)
    [(weight, options)] = calls
    assert torch.equal(weight, whole[16:24]) and len(options["bias"]) == 8
    shard: Shard = options["shard"]
    assert (shard.total_rows, shard.start, shard.process_group) == (V, 16, "the ranks")
    assert shard.all_gather is not None
    assert shard.all_gather(tokens) == (tokens, 0), "by vLLM's communicator, and in its order"  # type: ignore[comparison-overlap]


def test_settings_that_this_draft_cannot_have() -> None:
    with pytest.raises(
        UnsupportedError, match="vllm: Speculator: expected settings that fit the draft, got"
    ):
        drafter_of(draft_model(), frequent_tokens_file="absent.npy")


def test_says_once_what_it_is_attached_to(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "vllm"):
        drafter_of(draft_model(OFFSETS), vocabulary="request", capacity=6)
    warning, record = caplog.records
    assert "'request': 4 requests with K = 6 may read more rows" in warning.getMessage()
    assert record.name.startswith("vllm.")  # vLLM would not show it otherwise
    for part in ("Speculator", "DraftModel", "[10, 8] float32", "K = 6", "4 vocabularies", "0.32"):
        assert part in record.getMessage()


def test_one_vocabulary_for_each_request_may_read_less_than_the_whole_head(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level("WARNING", "vllm"):
        drafter_of(draft_model(), vocabulary="request", capacity=V // 4)
        drafter_of(draft_model(), capacity=V)
        assert not caplog.records
        drafter_of(draft_model(), vocabulary="request", capacity=V // 4 + 1)
    assert len(caplog.records) == 1


def test_a_model_that_hands_hidden_states_on_as_they_are_is_not_run() -> None:
    """Each of its runs would end in an exception, which costs more than the head's launches."""
    model = draft_model()
    drafter = drafter_of(model)
    learn(drafter, torch.arange(V))
    hidden = torch.randn(4, DIM)
    want = model.compute_logits(hidden).argmax(-1)
    model.compute_logits = None  # type: ignore[assignment, method-assign]
    assert torch.equal(drafter.draft(hidden), want)


@pytest.mark.parametrize("skipped", [False, True])
def test_the_targets_tokenizer_gives_the_first_tokens(skipped: bool, tmp_path: Path) -> None:
    save_words(tmp_path, V)
    vllm_config = config(V)
    vllm_config.model_config.tokenizer = str(tmp_path)
    vllm_config.model_config.skip_tokenizer_init = skipped
    settings = Settings(capacity=4)
    head = attached("Speculator", draft_model(), vllm_config, settings, 4, hidden_size=DIM).head
    assert set(head.slot_tokens()[0].tolist()) == ({0, 1, 2, 3} if skipped else {0, 1, 3, 5})


def test_one_of_several_data_parallel_engines_writes_the_file(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    vllm_config = config(V)
    settings = Settings(capacity=4, learned_file=str(tmp_path / "learned.safetensors"))
    for index in (0, 1):
        vllm_config.parallel_config.data_parallel_index = index
        model = draft_model()
        learning = attach(
            "Draft", model, vllm_config, settings, 4, target=TARGET, hidden_size=DIM
        ).head.learning
        assert learning is not None and learning._file is not None
        assert learning._file.writes == (index == 0)


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
    with pytest.raises(
        UnsupportedError, match="reload_weights: expected the draft's LM head at its old"
    ):
        drafter.reload()
