# SPDX-License-Identifier: Apache-2.0
"""SGLang's plugin where SGLang's own LM head drafts: requests that opt out, costs, and graphs."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from microspec_kernels.integrations.sglang import plugin
from microspec_kernels.integrations.sglang.dense_graphs import captures_one

from .fake_sglang import ShapeKey
from .test_sglang_draft import BUSY, D, Request, V, active, head, patched, sglang, towards  # noqa: F401

NO = {"microspec": False}


def batch_of(*requests: Request) -> Any:
    return SimpleNamespace(reqs=list(requests), forward_mode=BUSY)


def prefill(worker: Any, *requests: Request, following: int = 9) -> Any:
    tokens = torch.full((len(requests),), following)
    return worker._draft_extend_for_prefill(batch_of(*requests), None, tokens)


def verify(worker: Any, *requests: Request, written: list[list[int]], logits: Tensor) -> None:
    """Verify three nodes of each request, of which `written` are accepted."""
    from sglang.srt.speculative.eagle_worker_v2 import EAGLEWorkerV2

    padded = [tokens + [63] * (3 - len(tokens)) for tokens in written]
    batch = batch_of(*requests)
    batch.result = SimpleNamespace(
        next_token_ids=torch.tensor(padded, dtype=torch.int32).flatten(),
        accept_lens=torch.tensor([len(tokens) for tokens in written], dtype=torch.int32),
        logits_output=SimpleNamespace(next_token_logits=logits),
    )
    EAGLEWorkerV2(worker).verify(batch)


def step(worker: Any, *requests: Request) -> None:
    """Draft and verify a step, in which the target writes nothing new."""
    batch = batch_of(*requests)
    batch.spec_info = SimpleNamespace(topk_index=torch.zeros(1, 1, dtype=torch.int64))
    worker.draft(batch)
    nodes = 3 * len(requests)
    verify(worker, *requests, written=[[9]] * len(requests), logits=towards(*[9] * nodes))


def is_dense(worker: Any) -> bool:
    model, hidden = worker.draft_runner.model, torch.randn(9, D)
    return torch.equal(model(hidden), hidden @ model.lm_head.weight[:V].T)


@pytest.mark.parametrize("top_k", [0, 2])
def test_it_observes_the_others_only(top_k: int) -> None:
    seen = []
    for alone in (False, True):  # the second worker has never heard of the first request
        worker = patched(learn=True, target_top_k=top_k, capacity=12)
        quiet, other = Request([20, 21], NO), Request([22, 23])
        requests = [quiet, other][alone:]
        prefill(worker, *requests)
        if not alone:
            prefill(worker, Request([25, 26], {"microspec": "false"}), following=27)
        logits = towards(15, 16, 18, 12, 13, 19)
        logits[:, 11] = 0.5
        for _ in range(2):
            written = [[15, 16], [17, 24]][alone:]
            verify(worker, *requests, written=written, logits=logits[3 * alone :])
        counts, stats = head(worker).learning.lists.text_counts[0], head(worker).stats()
        seen.append((active(worker), counts.tolist(), stats))
        assert {17, 24} <= active(worker) and counts[17] == 1
        assert plugin.draft_of(worker).choice.dense_steps == 2 * (not alone)
    assert seen[0] == seen[1]


def test_its_own_head_drafts_while_such_a_request_runs() -> None:
    worker = patched()
    other, quiet = Request([1, 2]), Request([5, 6], {"microspec": 0})
    assert not is_dense(worker)
    prefill(worker, other)
    assert not is_dense(worker)
    prefill(worker, quiet)
    assert is_dense(worker), "the draft reads its prompt"
    batch = batch_of(other)
    batch.spec_info = SimpleNamespace(topk_index=torch.zeros(1, 1, dtype=torch.int64))
    worker.draft(batch)
    assert not is_dense(worker), "it is not in this batch"
    step(worker, other, quiet)
    assert is_dense(worker)
    step(worker, other)
    assert not is_dense(worker)
    assert active(worker) == {1, 2, 9}


def test_without_dense_steps_it_is_only_not_learned() -> None:
    worker = patched(dense_steps=False)
    quiet = Request([5, 6], NO)
    prefill(worker, quiet)
    step(worker, quiet)
    assert not is_dense(worker) and active(worker) == set()


def test_a_value_that_is_neither_is_an_error_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    worker = patched()
    request = Request([5, 6], {"microspec": "off"})
    prefill(worker, request)
    assert active(worker) == {5, 6, 9}
    [record] = [record for record in caplog.records if record.levelname == "ERROR"]
    assert request.rid in record.getMessage()


def test_ranks_gather_the_logits_of_its_own_head_only() -> None:
    worker = patched()
    processor = worker.draft_runner.model.logits_processor
    quiet = Request([5, 6], NO)
    prefill(worker, quiet)
    assert processor.do_tensor_parallel_all_gather
    prefill(worker, Request([1]))
    assert not processor.do_tensor_parallel_all_gather


def test_by_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that the target writes is active, and then everything is."""
    choice = SimpleNamespace(dense=False, seen=[], reset=lambda: None)
    choice.step = choice.seen.append
    worker = patched()
    monkeypatch.setattr(plugin.draft_of(worker).choice, "_by_cost", choice)
    requests = Request([1]), Request([2])
    prefill(worker, *requests)
    for dense in (True, False):
        choice.dense = dense
        step(worker, *requests)
        assert is_dense(worker) == dense
    assert choice.seen == [2, 2]


def graphs(worker: Any) -> list[Any]:
    from sglang.srt.speculative.eagle_draft_cuda_graph_runner import EAGLEDraftCudaGraphRunner
    from sglang.srt.speculative.eagle_draft_extend_cuda_graph_runner import (
        EAGLEDraftExtendCudaGraphRunner,
    )

    worker.cuda_graph_runner = EAGLEDraftCudaGraphRunner(worker)
    worker.cuda_graph_runner_for_draft_extend = EAGLEDraftExtendCudaGraphRunner(worker)
    return [worker.cuda_graph_runner, worker.cuda_graph_runner_for_draft_extend]


def replays_dense(worker: Any, runner: Any, size: int = 2) -> bool:
    hidden = torch.randn(size, D)
    return torch.equal(
        runner.execute(hidden), hidden @ worker.draft_runner.model.lm_head.weight[:V].T
    )


@pytest.mark.parametrize("times", [1, 2])
def test_graphs_of_both_heads(times: int) -> None:
    """Also if SGLang captures them again."""
    worker = patched()
    runners = graphs(worker)
    for runner in runners * (times - 1):
        runner.capture()
    assert captures_one(worker) == []
    other, quiet = Request([1, 2]), Request([5, 6], NO)
    prefill(worker, other, quiet)
    for _ in range(2):
        for batch, dense in (((other, quiet), True), ((other,), False)):
            step(worker, *batch)
            for runner in runners:
                assert len(runner.backend.graphs) == 4
                assert replays_dense(worker, runner) == replays_dense(worker, runner, 4) == dense
    hidden = torch.randn(4, D)
    chosen = set(runners[0].execute(hidden).argmax(-1).tolist())
    assert chosen <= active(worker) == {1, 2, 9}


def test_a_variant_of_sglangs_own_stays_apart() -> None:
    worker = patched()
    backend = graphs(worker)[0].backend
    backend.capture_one(ShapeKey(2, "greedy"), lambda: None)
    labels = {key.variant_label for key in backend.graphs if key.size == 2}
    assert labels == {None, "greedy", "microspec dense", "greedy, microspec dense"}


def test_one_capture_where_steps_may_not_go_dense() -> None:
    worker = patched(dense_steps=False)
    for runner in graphs(worker):
        assert len(runner.backend.graphs) == 2
        prefill(worker, Request([5, 6], NO))
        assert not replays_dense(worker, runner)


def test_its_own_graphs_are_replayed_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = patched()
    runners, draft = graphs(worker), plugin.draft_of(worker)
    assert draft is not None
    draft.guard.start()
    monkeypatch.setattr(head(worker), "observe", lambda *_, **__: 1 / 0)
    request = Request([1])
    prefill(worker, request)
    for _ in range(2):
        step(worker, request)
        assert all(replays_dense(worker, runner) for runner in runners)
