# SPDX-License-Identifier: Apache-2.0
"""vLLM's plugin where vLLM's own LM head drafts: requests that opt out, costs, and graphs."""

from typing import Any

import pytest
import torch
from torch import Tensor

from microspec_kernels.integrations.vllm.drafter import Drafter, drafter_of
from microspec_kernels.integrations.vllm.metrics import Metrics

from .fake_vllm_v1 import runner as v1_runner
from .test_vllm_v2 import DIM, V, _patched, active, batch, best, join, make, request  # noqa: F401

NO = {"microspec": False}


@pytest.fixture(autouse=True)
def _between_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports need Prometheus' package."""
    monkeypatch.setattr(Metrics, "tick", lambda self: None)


def drafter_in(holder: Any) -> Drafter:
    drafter = drafter_of(holder)
    assert drafter is not None
    return drafter


def counts(holder: Any) -> dict[int, int]:
    """Return the number of texts of each counted token."""
    learning = drafter_in(holder).head.learning
    assert learning is not None
    found = learning.lists.text_counts.sum(0)
    return {int(token): int(found[token]) for token in found.nonzero()}


def is_dense(speculator: Any) -> bool:
    hidden = torch.randn(40, DIM)
    drafts = speculator.sample_draft(hidden, None, torch.zeros(40, dtype=torch.int64))
    return torch.equal(drafts, speculator.compute_draft_logits(hidden, 0).argmax(-1))


@pytest.mark.parametrize("top_k", [0, 1, 2])
@pytest.mark.parametrize("vocabulary", ["shared", "request"])
def test_v2_observes_the_others_only(make: Any, vocabulary: str, top_k: int) -> None:  # noqa: F811
    settings = {"vocabulary": vocabulary, "target_top_k": top_k}
    prompts = [[20, 21], [22, 23]]
    logits = best(15, 16, 18, 17, 12)
    logits[:3, 14] = logits[3:, 11] = 0.5
    seen = []
    for alone in (False, True):  # the second runner has never heard of "a"
        runner = make(capacity=9, learn=True, **settings)
        if not alone:
            join(runner, request("a", 3, prompts[0], extra_args=NO))
        join(runner, request("b", 1, prompts[1]))
        runner.speculator.sample_draft(torch.randn(1, DIM), None, torch.tensor([1]))
        runner.rejection_sampler.tokens = torch.tensor([[15, 16, 0], [17, 17, 0]][alone:])
        runner.rejection_sampler.num_sampled = torch.tensor([2, 2][alone:])
        rows = {1: [4, 5]} if alone else {3: [1, 2, 3], 1: [4, 5]}
        for _ in range(3):
            step = batch(rows, [3, 2][alone:])
            runner.sample_tokens(logits[3 * alone :].clone(), step)
        stats = drafter_in(runner).stats()
        assert stats is not None and stats["dense_steps"] == (0 if alone else 3)
        assert stats["misses"] > 0 and counts(runner) == {17: 1}
        slot = int(vocabulary == "request")
        seen.append((active(runner, slot), stats["hits"], stats["misses"]))
        assert (11 in active(runner, slot)) == (top_k == 2)
    assert seen[0] == seen[1]


def test_v2_drafts_with_its_own_head_while_it_runs(make: Any) -> None:  # noqa: F811
    runner = make(capacity=3)
    join(runner, request("a", 0, [1, 2, 3]))
    runner.sample_tokens(best(4), batch({0: [3]}, [1]))
    assert not is_dense(runner.speculator)
    join(runner, request("b", 1, [5, 6], extra_args=NO))
    runner.sample_tokens(best(4, 9), batch({0: [4], 1: [5, 6]}, [1, 1]))
    assert is_dense(runner.speculator)
    runner.sample_tokens(best(4), batch({0: [4]}, [1]))
    assert not is_dense(runner.speculator), "b was not in this step"
    join(runner, request("c", 1, [7]))  # in the slot that b had
    runner.sample_tokens(best(4, 8), batch({0: [4], 1: [7]}, [1, 1]))
    assert not is_dense(runner.speculator)
    assert active(runner) <= {1, 2, 3, 4, 7, 8}


def test_v2_drafts_of_its_own_head_are_no_drafts_of_another_way(make: Any) -> None:  # noqa: F811
    """The first step may be one of a request that has opted out."""
    runner = make()
    join(runner, request("a", 0, [1], extra_args={"microspec": "0"}))
    runner.sample_tokens(best(4), batch({0: [1]}, [1]))
    assert is_dense(runner.speculator)
    runner.rejection_sampler.tokens = torch.tensor([[5, 9]])
    runner.rejection_sampler.num_sampled = torch.tensor([1])
    runner.sample_tokens(best(5, 9), batch({0: [4, 5]}, [2]))
    assert active(runner) == set()


def test_v2_without_dense_steps_a_request_is_only_not_learned(make: Any) -> None:  # noqa: F811
    runner = make(capacity=3, dense_steps=False)
    join(runner, request("a", 0, [1, 2, 3]), request("b", 1, [5, 6], extra_args=NO))
    runner.sample_tokens(best(4, 9), batch({0: [3], 1: [6]}, [1, 1]))
    assert not is_dense(runner.speculator) and active(runner) == {2, 3, 4}


def test_a_value_that_is_neither_is_an_error_in_the_log(make: Any, caplog: Any) -> None:  # noqa: F811
    runner = make(capacity=12)
    join(runner, request("a", 0, [1, 2], extra_args={"microspec": "off"}))
    assert active(runner) == {1, 2}
    [record] = caplog.records
    assert record.levelname == "ERROR" and "request a: microspec: expected true" in record.message


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("top_k", [0, 2])
def test_v1_observes_the_others_only(top_k: int, padded: bool) -> None:
    """Also with a top-k of more rows than there are requests."""
    rows = [3, 2] if padded else [1, 1]
    logits = best(15, 16, 18, 12, 13) if padded else best(15, 12)
    logits[: rows[0], 14] = logits[rows[0] :, 11] = 0.5
    seen = []
    for alone in (False, True):  # the second runner has never heard of "a"
        with v1_runner(capacity=12, target_top_k=top_k) as vllm:
            if not alone:
                vllm.join(a=[20, 21], extra_args=NO)
            vllm.join(b=[22, 23])
            vllm.drafter._greedy_sample(torch.randn(2, DIM))
            first = rows[0] if alone else 0
            written, drafts = [[15, 16, -1], [17, 17, -1]], [count - 1 for count in rows]
            vllm.step(
                *written[alone:],
                logits=logits[first:].clone(),
                drafts=drafts[alone:] if padded else None,
            )
            drafter = drafter_in(vllm)
            stats = drafter.stats()
            assert stats is not None and stats["dense_steps"] == (not alone)
            ids = drafter.head.vocab.ids[0].tolist()
            seen.append((sorted(ids), counts(vllm), stats["hits"], stats["misses"]))
            assert 17 in ids and (11 in ids) == bool(top_k)
    assert seen[0] == seen[1]


def test_v1_drafts_with_its_own_head_while_it_runs() -> None:
    with v1_runner(capacity=4) as vllm:
        hidden = torch.randn(30, DIM)
        own = vllm.drafter.model.compute_logits(hidden).argmax(-1)
        vllm.join(a=[20, 21], extra_args=NO)
        vllm.join(b=[22, 23])
        vllm.step([5, -1], [6, -1])
        assert torch.equal(vllm.drafter._greedy_sample(hidden), own)
        vllm.join(finished=("a",))
        assert not drafter_in(vllm)._opted_out, "nothing is kept of requests that have ended"
        vllm.step([6, -1])
        assert not torch.equal(vllm.drafter._greedy_sample(hidden), own)
        vllm.join(a=[20])  # another request of that name
        vllm.step([6, -1], [7, -1])
        assert not torch.equal(vllm.drafter._greedy_sample(hidden), own)
        assert 7 in drafter_in(vllm).head.vocab.ids[0].tolist()


def test_v1_steps_of_step_3p5() -> None:
    with v1_runner(steps=True, capacity=4) as vllm:
        vllm.join(a=[20, 21], extra_args=NO)
        vllm.step([5])
        hidden = torch.randn(30, DIM)
        drafts, _ = vllm.drafter._sample_draft_tokens_for_step(hidden, None, spec_step_idx=1)
        assert torch.equal(drafts, vllm.drafter.model.compute_logits(hidden, 1).argmax(-1))
        vllm.step([5, 6], logits=torch.zeros(2, V), drafts=[1])


def test_v1_by_cost(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    """Nothing that the target writes is active, and then everything is."""
    monkeypatch.setattr("microspec_kernels.engine.dense_steps.STEPS", 4)
    monkeypatch.setattr("microspec_kernels.engine.dense_steps.HALF_LIFE", 8)
    monkeypatch.setattr("microspec_kernels.engine.dense_steps.ENOUGH", 8)
    caplog.set_level("INFO", "vllm.microspec_kernels")
    with v1_runner(capacity=3, dense_steps=True, learn=False, target_top_k=0) as vllm:
        vllm.join(a=[1])
        hidden = torch.randn(30, DIM)
        own = vllm.drafter.model.compute_logits(hidden).argmax(-1)
        heads = []
        for step in range(48):
            vllm.step([step % V, (step + 7) % V] if step < 24 else [1, 1])
            heads.append(torch.equal(vllm.drafter._greedy_sample(hidden), own))
        assert heads[23] and not heads[0] and not heads[-1]
        drafter = drafter_in(vllm)
        stats = drafter.stats()
        assert stats is not None and stats["dense_steps"] == sum(heads)
    said = [text for text in caplog.messages if "drafts from now on" in text]
    assert ["own LM head" in text for text in said] == [True, False]


class Graphs:
    """A speculator's steps in vLLM's graphs: what `replay` drafts for the hidden states."""

    def __init__(self, runner: Any) -> None:
        self.speculator = runner.speculator
        self.speculator.capture()

    def replay(self, hidden: Tensor) -> Tensor:
        speculator = self.speculator
        speculator.hidden[: len(hidden)] = hidden
        speculator.decode_cudagraph_manager.run_fullgraph(("specialised", "full", len(hidden)))
        return speculator.drafts[: len(hidden)].clone()

    def is_dense(self) -> bool:
        hidden = torch.randn(4, DIM)
        own = self.speculator.compute_draft_logits(hidden, 0).argmax(-1)
        return torch.equal(self.replay(hidden), own)


def step_of(runner: Any, *slots: int) -> None:
    runner.sample_tokens(
        best(*[4] * len(slots)), batch({slot: [3] for slot in slots}, [1] * len(slots))
    )


@pytest.mark.parametrize("times", [1, 2])
def test_v2_replays_either_head(make: Any, times: int) -> None:  # noqa: F811
    """Also after vLLM has captured again, as for its memory profile."""
    runner = make(capacity=2)
    for _ in range(times):
        manager = runner.speculator.make_managers()
        graphs = Graphs(runner)
    assert manager.captured == ["piecewise", "full", "full", "full", "full"]
    join(runner, request("a", 0, [3, 4]), request("b", 1, [5], extra_args=NO))
    for _ in range(2):
        step_of(runner, 0)
        assert not graphs.is_dense() and set(graphs.replay(torch.randn(4, DIM)).tolist()) <= {3, 4}
        step_of(runner, 0, 1)
        assert graphs.is_dense()
    assert runner.speculator.prefill_cudagraph_manager.graphs == {}
    drafter_in(runner).reset()
    assert not graphs.is_dense()


def test_v2_captures_again_while_its_own_head_drafts(make: Any) -> None:  # noqa: F811
    runner = make(capacity=2)
    manager = runner.speculator.make_managers()
    graphs = Graphs(runner)
    join(runner, request("a", 0, [3, 4], extra_args=NO))
    step_of(runner, 0)
    manager.captured.clear()
    manager.release_graphs()
    graphs = Graphs(runner)
    assert manager.captured == ["piecewise", "full", "full", "full", "full"]
    assert graphs.is_dense()
    join(runner, request("b", 1, [3, 4]))
    step_of(runner, 1)
    assert not graphs.is_dense()


def test_v2_captures_one_head_where_steps_may_not_go_dense(make: Any) -> None:  # noqa: F811
    runner = make(capacity=2, dense_steps=False)
    manager = runner.speculator.make_managers()
    graphs = Graphs(runner)
    assert manager.captured == ["piecewise", "full", "full"]
    join(runner, request("a", 0, [3, 4], extra_args=NO))
    step_of(runner, 0)
    assert not graphs.is_dense()


def test_v2_replays_its_own_head_after_a_failure(make: Any, monkeypatch: Any, caplog: Any) -> None:  # noqa: F811
    runner = make(capacity=2)
    runner.speculator.make_managers()
    graphs = Graphs(runner)
    drafter = drafter_in(runner)
    drafter.guard.start()
    join(runner, request("a", 0, [3, 4]))
    step_of(runner, 0)
    assert not graphs.is_dense()
    monkeypatch.setattr(drafter.head, "observe", lambda *_, **__: 1 / 0)
    step_of(runner, 0)
    assert graphs.is_dense() and drafter_of(runner) is None
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert caplog.records[0].getMessage().endswith("own LM head: division by zero")
