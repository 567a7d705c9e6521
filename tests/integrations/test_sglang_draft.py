# SPDX-License-Identifier: Apache-2.0
"""SGLang's draft worker with an active vocabulary: its drafts, observed tokens and counts."""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from microspec_kernels.engine import Settings, Shard
from microspec_kernels.integrations.hooks import UnsupportedError
from microspec_kernels.integrations.sglang import plugin
from microspec_kernels.integrations.sglang.draft import ActiveDraft

from .fake_sglang import LlamaForCausalLMEagle3, LogitsProcessor, config, installed
from .stored_layers import READABLE, Method
from .test_vllm_attach import save_words

V, D, K = 64, 16, 8
ROWS = torch.tensor([3, 60, 8, 21, 22, 5, 40, 41, 9, 10, 33, 0])
"""The tokens that a draft with d2t has rows for."""

each_rows = pytest.mark.parametrize("rows", [None, ROWS], ids=["all", "d2t"])
each_topk = pytest.mark.parametrize("topk", [1, 3], ids=["chain", "tree"])
BUSY = SimpleNamespace(is_idle=lambda: False)


@pytest.fixture(autouse=True)
def sglang() -> Iterator[None]:
    torch.manual_seed(0)
    with installed():
        yield


def unpatched(rows: Tensor | None = None, topk: int = 1) -> Any:
    from sglang.srt.speculative.eagle_worker_v2 import EagleDraftWorker

    size = V if rows is None else len(rows)
    model = LlamaForCausalLMEagle3(torch.randn(size + 4, D), size, V, rows)
    return EagleDraftWorker(model, V, topk)


def patched(rows: Tensor | None = None, topk: int = 1, **settings: Any) -> Any:
    plugin._patch(Settings(**({"capacity": K, "target_top_k": 1, "learn": False} | settings)))
    worker = unpatched(rows, topk)
    worker.init_lm_head()
    worker.draft_runner.model(torch.zeros(1, D))  # as the capture of SGLang's graphs does
    return worker


def head(worker: Any) -> Any:
    return plugin.draft_of(worker).head


def prefill(worker: Any, prompt: list[int], following: int, cached: list[int] | None = None) -> Any:
    """Prefill one request with a partly cached prompt; return SGLang's draft input."""
    request = Request([*(cached or []), *prompt])
    batch = SimpleNamespace(
        reqs=[request],
        prefix_lens=[len(cached or [])],
        input_ids=torch.tensor(prompt),
        forward_mode=BUSY,
    )
    return worker._draft_extend_for_prefill(batch, None, torch.tensor([following]))


class Request:
    def __init__(self, tokens: list[int], custom_params: Any = None) -> None:
        self.origin_input_ids, self.output_ids = tokens, []
        self.sampling_params = SimpleNamespace(custom_params=custom_params)
        self.rid = f"request {id(self)}"


def verify(worker: Any, tree: list[int], accepted: list[list[int]], logits: Tensor) -> None:
    from sglang.srt.speculative.eagle_worker_v2 import EAGLEWorkerV2

    nodes = len(tree) // len(accepted)
    padded = [tokens + [63] * (nodes - len(tokens)) for tokens in accepted]  # SGLang pads like this
    requests = [Request([]) for _ in accepted]
    result = SimpleNamespace(
        next_token_ids=torch.tensor(padded, dtype=torch.int32).flatten(),
        accept_lens=torch.tensor([len(tokens) for tokens in accepted], dtype=torch.int32),
        logits_output=SimpleNamespace(next_token_logits=logits),
    )
    spec_info = SimpleNamespace(draft_token=torch.tensor(tree))
    batch = SimpleNamespace(result=result, spec_info=spec_info, forward_mode=BUSY, reqs=requests)
    assert EAGLEWorkerV2(worker).verify(batch) is result


def towards(*tokens: int) -> Tensor:
    """Return logits of a target that prefers these tokens, one per row."""
    return torch.nn.functional.one_hot(torch.tensor(tokens), V).float()


def draft(worker: Any, draft_input: Any) -> Tensor:
    return worker.draft_forward(SimpleNamespace(spec_info=draft_input))


def activate_all(draft: ActiveDraft) -> None:
    draft.prompts(SimpleNamespace(reqs=[]), torch.arange(V))


def active(worker: Any) -> set[int]:
    return set(head(worker).slot_tokens().flatten().tolist()) - {-1}


@each_rows
@each_topk
def test_with_all_tokens_active_it_drafts_as_without(rows: Tensor | None, topk: int) -> None:
    tokens = list(range(V)) if rows is None else rows.tolist()
    without = unpatched(rows, topk)
    without.init_lm_head()
    expected = prefill(without, tokens, 3)
    expected_tokens = draft(without, expected)
    torch.manual_seed(0)
    with_all = patched(rows, topk, capacity=V)
    got = prefill(with_all, tokens, 3)
    torch.testing.assert_close(got.topk_p, expected.topk_p)
    assert torch.equal(draft(with_all, got), expected_tokens)


@each_rows
@each_topk
@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_tokens_chosen_by_draft_extend_stay_whatever_enters_before_the_draft(
    rows: Tensor | None, topk: int, phase: str
) -> None:
    worker = patched(rows, topk, capacity=7, mode="packed")
    draft_input = prefill(worker, [3, 8, 21, 22], 5)
    if phase == "decode":
        draft_input = SimpleNamespace(bonus_tokens=torch.tensor([8]))
        worker._draft_extend_for_decode(None, SimpleNamespace(next_draft_input=draft_input))
    with_now = draft(worker, draft_input)[:, 0]
    assert set(with_now.flatten().tolist()) <= active(worker)
    others = [40, 41, 9, 10, 33, 0, 60]
    for following in others:  # other requests begin: every slot gets another token
        prefill(worker, others, following)
    assert not set(with_now.flatten().tolist()) & active(worker)
    assert torch.equal(draft(worker, draft_input)[:, 0], with_now)
    assert set(draft(worker, draft_input)[:, 1:].flatten().tolist()) <= active(worker)


@each_rows
def test_nothing_of_sglangs_own_is_replaced_but_the_head(rows: Tensor | None) -> None:
    """SGLang's fused chain of top-1 drafts runs only if the worker has no token map."""
    worker = patched(rows)
    assert worker.hot_token_id is (None if rows is None else rows)
    assert not hasattr(worker.draft_runner.model_config.hf_config, "hot_vocab_size")
    assert not worker.draft_runner.model.logits_processor.do_tensor_parallel_all_gather


def test_what_a_graph_was_captured_with_is_never_replaced() -> None:
    worker = patched()
    wide = plugin.draft_of(worker)._wide
    tensors = [wide._columns, head(worker).vocab.ids]
    addresses = [tensor.data_ptr() for tensor in tensors]
    for first in range(0, V - K, K):
        prefill(worker, list(range(first, first + K)), first)
    assert [wide._columns, head(worker).vocab.ids] == tensors
    assert [tensor.data_ptr() for tensor in tensors] == addresses


@each_rows
@pytest.mark.parametrize("buffer", ["none", "fits", "other width", "other dtype"])
def test_logits_have_a_column_for_each_row(rows: Tensor | None, buffer: str) -> None:
    worker = patched(rows)
    prefill(worker, [3, 8], 21)  # five slots are empty
    size, hidden = V if rows is None else len(rows), torch.randn(5, D)
    out = {
        "none": None,
        "fits": torch.empty(5, size),
        "other width": torch.empty(5, size + 1),
        "other dtype": torch.empty(5, size, dtype=torch.float64),
    }[buffer]
    model = worker.draft_runner.model
    logits = model.logits_processor._compute_lm_head(hidden, model.lm_head, out=out)
    tokens = torch.arange(V) if rows is None else rows
    alive = torch.isin(tokens, torch.tensor([3, 8, 21]))
    dense = hidden @ model.lm_head.weight[:size].T
    torch.testing.assert_close(logits[:, alive], dense[:, alive])
    assert (logits[:, ~alive] == -1e30).all()  # SGLang's asserts refuse infinities
    assert logits.shape == (5, size) and logits.is_contiguous() and logits.dtype == torch.float32
    assert (logits is out) == (buffer == "fits")


def test_made_in_inference_mode() -> None:
    with torch.inference_mode():
        worker = patched()
    prefill(worker, [3, 8], 21)
    assert active(worker) == {3, 8, 21}


def test_no_rows_at_all() -> None:
    """An idle rank of data-parallel attention runs the draft model over nothing."""
    assert patched().draft_runner.model(torch.empty(0, D)).shape == (0, V)


def test_a_tree_wider_than_the_active_tokens() -> None:
    worker = patched(topk=3)
    tokens = draft(worker, prefill(worker, [7], 8))[0, 0].tolist()
    assert set(tokens[:2]) == {7, 8} and 0 <= tokens[2] < V and len(set(tokens)) == 3


def test_drafts_that_came_another_way_are_refused() -> None:
    plugin._patch(Settings(capacity=K, target_top_k=1))
    worker = unpatched()
    worker.init_lm_head()
    plugin.draft_of(worker).guard.start()
    with pytest.raises(UnsupportedError, match="the first drafts: expected drafts by the attached"):
        verify(worker, [1, 2], [[9]], towards(1, 2))


def test_prompts_are_seen_with_what_was_cached_of_them_once() -> None:
    worker = patched()
    prefill(worker, [20, 21], 22, cached=[1, 2, 3])
    assert active(worker) == {1, 2, 3, 20, 21, 22}
    request = Request([5, 6, 7, 8])
    batch = SimpleNamespace(reqs=[request], forward_mode=BUSY)
    batch.prefix_lens, batch.input_ids = [0], torch.tensor([5, 6])
    worker._draft_extend_for_prefill(batch, None, torch.tensor([9]))
    prefill(worker, [30, 31], 32)
    batch.prefix_lens, batch.input_ids = [2], torch.tensor([7, 8])
    worker._draft_extend_for_prefill(batch, None, torch.tensor([9]))
    # The prompt entered as a whole before its first part, so its tokens are the next to leave.
    prefill(worker, [33, 34], 35)
    assert active(worker) == {8, 9, 30, 31, 32, 33, 34, 35}


def test_the_cached_text_of_a_request_that_comes_again_is_seen_too() -> None:
    worker, request = patched(), Request([1, 2, 3])
    request.output_ids = [4, 5]
    batch = SimpleNamespace(reqs=[request], prefix_lens=[4], forward_mode=BUSY)
    batch.input_ids = torch.tensor([5])
    worker._draft_extend_for_prefill(batch, None, torch.tensor([6]))
    assert active(worker) == {1, 2, 3, 4, 5, 6}


def test_the_targets_best_and_accepted_tokens_of_a_tree_enter() -> None:
    worker = patched()
    prefill(worker, [50, 51], 52)
    verify(worker, [52, 1, 2, 3], [[1, 40]], towards(1, 40, 5, 6))
    assert active(worker) == {50, 51, 52, 1, 40, 5, 6}
    stats = head(worker).stats()
    assert (stats.hits, stats.misses) == (0, 2)
    verify(worker, [40, 5, 6, 3], [[5, 6, 41]], towards(5, 6, 41, 42))
    stats = head(worker).stats()
    assert (stats.hits, stats.misses) == (2, 3)
    # Accepted tokens are the newest, so others are evicted before them.
    prefill(worker, [10, 11, 12, 13], 14)
    assert active(worker) == {5, 6, 41, 10, 11, 12, 13, 14}


def test_several_of_the_targets_best_enter() -> None:
    worker = patched(target_top_k=2)
    logits = towards(30, 31)
    logits[:, 20] = 0.5
    verify(worker, [1, 2], [[9]], logits)
    assert active(worker) == {30, 31, 20, 9}


def test_idle_batches_are_not_looked_at() -> None:
    from sglang.srt.speculative.eagle_worker_v2 import EAGLEWorkerV2

    worker, mode = patched(), SimpleNamespace(is_idle=lambda: True)
    idle = SimpleNamespace(draft_token=torch.empty(0, dtype=torch.int64))
    EAGLEWorkerV2(worker).verify(SimpleNamespace(result=1, spec_info=idle, forward_mode=mode))
    assert active(worker) == set()


def test_logits_of_another_width_are_refused() -> None:
    with pytest.raises(
        UnsupportedError, match=r"target's logits: expected shape \[2, 64\].*\[2, 32\]"
    ):
        verify(patched(), [1, 2], [[9]], torch.zeros(2, V // 2))


@pytest.mark.parametrize("source", ["disk", "distributed", "tensor", "ipc"])
def test_new_weights_reach_the_slab(source: str) -> None:
    from sglang.srt.managers.scheduler_components.weight_updater import (
        SchedulerWeightUpdaterManager,
    )

    worker = patched(mode="packed")
    prefill(worker, [1, 2, 3, 4, 5, 6], 7)
    weight, hidden = worker.draft_runner.model.lm_head.weight, torch.randn(2, D)
    manager = SchedulerWeightUpdaterManager(SimpleNamespace(draft_worker=worker))
    update = getattr(manager, f"update_weights_from_{source}")
    assert update(lambda: weight.data.copy_(torch.randn_like(weight))) == "updated"
    tokens = sorted(active(worker))
    expected = (hidden @ weight.T)[:, tokens]
    torch.testing.assert_close(worker.draft_runner.model(hidden)[:, tokens], expected)
    worker.draft_runner.model.lm_head.weight = torch.nn.Parameter(weight.detach().clone())
    with pytest.raises(UnsupportedError, match="old address"):
        update(lambda: None)


def test_it_says_what_it_was_attached_to_and_how_it_goes(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="microspec_kernels.integrations.sglang"):
        worker = patched(ROWS)
        for _ in range(4):
            verify(worker, [3, 60], [[8]], towards(1, 40))
    attached, *metrics = caplog.messages
    assert attached == (
        "MicroSpec: attached to EagleDraftWorker: LlamaForCausalLMEagle3, LM head [12, 16] "
        "float32, K = 8, 1 vocabulary, target's top-1, mode indexed, SGLang 0.5.23"
    )
    assert [message.split(",")[0] for message in metrics] == [
        "MicroSpec metrics: Coverage: 50.0%",
        "MicroSpec metrics: Coverage: 100.0%",
    ]


def test_the_targets_tokenizer_gives_the_first_tokens(tmp_path: Path) -> None:
    save_words(tmp_path, V)
    groups = config()
    groups["serving"]["tokenizer_path"] = str(tmp_path)
    with installed(groups):
        worker = patched(learn=True, capacity=4)
    assert active(worker) == {0, 1, 3, 5}


@pytest.mark.parametrize(
    ("ranks", "writes"),
    [
        ({}, True),
        ({"dp_rank": 0}, True),
        ({"dp_rank": 1}, False),
        ({"attn_dp_rank": 1}, False),
    ],
)
def test_one_of_several_data_parallel_heads_writes_the_file(
    ranks: dict[str, int], writes: bool, tmp_path: Path
) -> None:
    pytest.importorskip("safetensors")
    groups = config()
    groups["parallel"] |= ranks
    with installed(groups):
        worker = patched(learn=True, learned_file=str(tmp_path / "learned.safetensors"))
    assert head(worker).learning._file.writes == writes


def test_texts_are_counted_by_request() -> None:
    worker = patched(learn=True, target_top_k=0)
    requests = [Request([1]), Request([2])]
    batch = SimpleNamespace(reqs=requests, forward_mode=BUSY)
    draft = plugin.draft_of(worker)
    assert draft is not None
    draft.prompts(batch, torch.tensor([7, 7]))
    result = SimpleNamespace(
        next_token_ids=torch.tensor([30, 31, 31, 40, 30, 50], dtype=torch.int32),
        accept_lens=torch.tensor([2, 2], dtype=torch.int32),
    )
    for _ in range(2):
        draft.verified(batch, result)
    counts = head(worker).learning.lists.text_counts[0]
    found = {int(token): int(counts[token]) for token in counts.nonzero()}
    assert found == {30: 2, 31: 1, 40: 1}
    assert int(head(worker).learning.lists.num_texts.sum()) == 2


def test_other_ranks_do_not_say_how_it_goes(caplog: pytest.LogCaptureFixture) -> None:
    groups = config()
    groups["parallel"]["attn_tp_rank"] = 1
    with installed(groups), caplog.at_level("INFO", logger="microspec_kernels"):
        worker = patched()
        for _ in range(4):
            verify(worker, [3, 60], [[8]], towards(1, 40))
    assert len(caplog.messages) == 1


def _quantised(worker: Any) -> None:
    values = torch.randn(V, D)  # other ones than the weight's
    worker.draft_runner.model.lm_head.quant_method = Method(values)


def _with_lora(worker: Any) -> None:
    model = worker.draft_runner.model
    wrapped = model.lm_head
    del model.lm_head
    model.lm_head = SimpleNamespace(base_layer=wrapped)


def _other_dtype(worker: Any) -> None:
    worker.draft_runner.dtype = torch.bfloat16


def _fewer_rows(worker: Any) -> None:
    worker.draft_runner.model.lm_head.org_vocab_size -= 1


def _amx(worker: Any) -> None:
    worker.draft_runner.model.lm_head.use_intel_amx_backend = True


def _own_logits(worker: Any) -> None:
    model = worker.draft_runner.model
    model.logits_processor = type("ScaledLogitsProcessor", (LogitsProcessor,), {})()


def _no_head(worker: Any) -> None:
    del worker.draft_runner.model.lm_head


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_quantised, "lm_head.quant_method: expected none, or one whose rows can be read"),
        (_with_lora, "a ParallelLMHead"),
        (_other_dtype, "lm_head.weight.dtype"),
        (_fewer_rows, "lm_head.org_vocab_size"),
        (_amx, "AMX"),
        (_own_logits, "Eagle3.logits_processor: expected a LogitsProcessor, got ScaledLogits"),
        (_no_head, "a ParallelLMHead, got NoneType"),
    ],
)
def test_heads_that_are_not_served(change: Callable[[Any], None], message: str) -> None:
    worker = unpatched()
    change(worker)
    with pytest.raises(UnsupportedError, match=message):
        ActiveDraft(worker, Settings(capacity=K))


def test_a_draft_of_any_class_is_served() -> None:
    """NextN and MTP drafts have an LM head like EAGLE's, shared with the target."""
    worker = unpatched()
    model = worker.draft_runner.model
    model.__class__ = type("Qwen3_5ForCausalLMMTP", (LlamaForCausalLMEagle3,), {})
    activate_all(ActiveDraft(worker, Settings(capacity=V)))
    hidden = torch.randn(20, D)
    assert torch.equal(model(hidden).argmax(-1), (hidden @ model.lm_head.weight[:V].T).argmax(-1))


@pytest.mark.parametrize("name", READABLE)
def test_quantised_heads(name: str) -> None:
    worker = unpatched()
    model, stored = worker.draft_runner.model, READABLE[name](torch.randn(V, 64))
    del model.lm_head.weight
    for each, value in (*vars(stored).items(), ("embedding_dim", 64)):
        setattr(model.lm_head, each, value)
    attached = ActiveDraft(worker, Settings(capacity=V))
    activate_all(attached)
    hidden = torch.randn(20, 64)
    wanted = hidden @ stored.quant_method.values.T
    torch.testing.assert_close(model(hidden), wanted, rtol=1e-4, atol=1e-4)
    attached.reload()


def test_a_method_that_is_stale_does_not_matter() -> None:
    """SGLang lets a draft share an unquantised head and keep the method of its own checkpoint."""
    worker = unpatched()
    head = worker.draft_runner.model.lm_head
    head.quant_method = Method(head.weight.detach()[:V])
    attached = ActiveDraft(worker, Settings(capacity=V))
    (rows,) = attached._rows
    assert rows.weight_scale is None and rows.logit_scale == 1.0


def dp_attention(attn_tp_size: int = 1) -> Any:
    groups = config()
    ranks = {"attn_dp_size": 2, "attn_tp_size": attn_tp_size}
    return installed(groups | {"parallel": groups["parallel"] | ranks})


def test_data_parallel_attention_with_a_head_for_each_rank() -> None:
    worker = unpatched()
    with dp_attention():
        worker.draft_runner.model.logits_processor.use_attn_tp_group = True
        ActiveDraft(worker, Settings(capacity=K))


def test_data_parallel_attention_with_a_shared_head() -> None:
    with (
        dp_attention(),
        pytest.raises(
            UnsupportedError, match="enable_dp_lm_head: expected True with data-parallel"
        ),
    ):
        ActiveDraft(unpatched(), Settings(capacity=K))


def test_data_parallel_attention_with_a_head_on_other_ranks() -> None:
    worker = unpatched()
    with dp_attention(attn_tp_size=2):
        worker.draft_runner.model.logits_processor.use_attn_tp_group = True
        with pytest.raises(
            UnsupportedError, match=r"lm_head\.tp_size: expected attn_tp_size, 2, got 1"
        ):
            ActiveDraft(worker, Settings(capacity=K))


@pytest.mark.parametrize("attention", [False, True])
def test_each_rank_attaches_to_its_rows(attention: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 24 rows in shards of 16, the second shard has 8, and then padding."""
    worker = unpatched(torch.arange(24))
    worker.hot_token_id = torch.arange(24)
    layer = worker.draft_runner.model.lm_head
    layer.weight = torch.nn.Parameter(torch.randn(16, D), requires_grad=False)
    layer.tp_size = 2
    layer.shard_indices = SimpleNamespace(org_vocab_start_index=16, org_vocab_end_index=24)
    worker.draft_runner.model.logits_processor.use_attn_tp_group = attention
    calls: list[Any] = []

    def record(weight: Tensor, settings: Settings, **options: Any) -> None:
        calls.append((weight, options))
        raise ValueError("enough")

    monkeypatch.setattr("microspec_kernels.integrations.sglang.draft.EngineHead", record)
    groups = config()
    for name in ("tp_group", "attn_tp_group"):
        groups["parallel"][name] = SimpleNamespace(device_group=name)
    with installed(groups), pytest.raises(UnsupportedError, match="enough"):
        ActiveDraft(worker, Settings(capacity=K))
    [(weight, options)] = calls
    assert torch.equal(weight, layer.weight[:8])
    group = "attn_tp_group" if attention else "tp_group"
    assert options["shard"] == Shard(24, 16, group)  # type: ignore[arg-type]


def test_another_lm_head_is_refused() -> None:
    worker = patched()
    model = worker.draft_runner.model
    other = functools.partial(model.logits_processor._compute_lm_head, torch.zeros(1, D))
    with pytest.raises(UnsupportedError, match="the one that was attached to"):
        other(SimpleNamespace())


def test_settings_that_do_not_fit_the_draft(tmp_path: Any) -> None:
    with pytest.raises(UnsupportedError, match=r"nowhere\.npy"):
        patched(frequent_tokens_file=str(tmp_path / "nowhere.npy"))
