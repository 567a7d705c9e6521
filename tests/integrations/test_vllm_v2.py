# SPDX-License-Identifier: Apache-2.0
"""Steps of patched classes with the hook points' arguments: vLLM's model runner V2."""

from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from microspec_kernels.integrations.hooks import UnsupportedError
from microspec_kernels.integrations.vllm import v2
from microspec_kernels.integrations.vllm.drafter import drafter_of, is_decided

from .fake_graphs import FakeGraph
from .fake_vllm import V2, DraftModel, config, installed

V, DIM, SLOTS = 24, 8, 4


class Sampler:
    """A sampler that overwrites the logits, as vLLM's may."""

    def __call__(self, logits: Tensor, input_batch: Any) -> Any:
        tokens = logits.argmax(-1)[:, None]
        logits.fill_(float("nan"))
        return SimpleNamespace(
            sampled_token_ids=tokens,
            num_sampled=torch.ones(len(tokens), dtype=torch.int32),
            num_rejected=None,
        )


class RejectionSampler:
    """A rejection sampler that accepts the test's tokens."""

    def __init__(self) -> None:
        self.tokens = self.num_sampled = torch.empty(0, dtype=torch.int64)

    def __call__(
        self, logits: Tensor, input_batch: Any, draft_logits: Any = None, invalid_drafts: Any = None
    ) -> Any:
        return SimpleNamespace(
            sampled_token_ids=self.tokens, num_sampled=self.num_sampled, num_rejected=None
        )


class Mode(NamedTuple):
    name: str


class CudaGraphManager:
    """Captures shapes, which vLLM's dynamic speculative decoding makes others of."""

    def __init__(self, shapes: dict[Mode, list[Any]]) -> None:
        self.graphs: dict[Any, FakeGraph] = {}
        self._capture_descs, self.captured = shapes, []

    def capture(self, forward: Any) -> None:
        self._capture_descs = {
            mode: [("specialised", *shape) for shape in shapes]
            for mode, shapes in self._capture_descs.items()
        }
        for mode, shapes in self._capture_descs.items():
            for shape in shapes:
                _, name, count = shape
                self.captured.append(name)
                forward(count)
                if mode.name == "FULL":
                    assert shape not in self.graphs
                    with FakeGraph() as self.graphs[shape]:
                        forward(count)

    def run_fullgraph(self, shape: Any) -> None:
        self.graphs[shape].replay()

    def release_graphs(self) -> None:
        self.graphs.clear()
        self._capture_descs = {
            mode: [shape[1:] for shape in shapes] for mode, shapes in self._capture_descs.items()
        }


class DraftModelSpeculator:
    def __init__(self, vllm_config: Any) -> None:
        self.vllm_config, self.max_num_reqs, self.hidden_size = vllm_config, SLOTS, DIM

    def load_model(self, target_model: Any) -> None:
        torch.manual_seed(3)
        self.model = DraftModel(torch.randn(V, DIM), V, V)

    def observe_verification(
        self, idx_mapping: Tensor, num_sampled: Tensor, num_rejected: Any
    ) -> None: ...

    def compute_draft_logits(self, hidden_states: Tensor, spec_step_idx: int) -> Tensor:
        return self.model.compute_logits(hidden_states.roll(spec_step_idx, -1))

    def sample_draft(
        self,
        hidden_states: Tensor,
        sample_src_positions: Any,
        idx_mapping: Tensor,
        spec_step_idx: int = 0,
        draft_logits: Tensor | None = None,
    ) -> Tensor:
        logits = self.compute_draft_logits(hidden_states, spec_step_idx)
        if draft_logits is None:
            return logits.argmax(-1)
        draft_logits[idx_mapping, spec_step_idx] = logits
        return logits.softmax(-1).multinomial(1)[:, 0]


class EagleSpeculator(DraftModelSpeculator):
    def load_model(self, target_model: Any) -> None:
        super().load_model(target_model)

    def make_managers(self) -> Any:
        """Make what vLLM captures graphs with, as it does for its profile and at its start."""
        from vllm.v1.worker.gpu.cudagraph_utils import CudaGraphManager

        shapes = {Mode("PIECEWISE"): [("piecewise", 4)], Mode("FULL"): [("full", 4), ("full", 2)]}
        self.prefill_cudagraph_manager = CudaGraphManager({})
        self.decode_cudagraph_manager = CudaGraphManager(shapes)
        self.hidden, self.drafts = torch.zeros(4, DIM), torch.zeros(4, dtype=torch.int64)
        return self.decode_cudagraph_manager

    def capture(self) -> None:
        self.prefill_cudagraph_manager.capture(self.generate)
        self.decode_cudagraph_manager.capture(self.generate)

    def generate(self, count: int) -> None:
        index = torch.zeros(count, dtype=torch.int64)
        self.drafts[:count].copy_(self.sample_draft(self.hidden[:count], None, index))


class GPUModelRunner:
    def __init__(self, vllm_config: Any) -> None:
        self.speculator = EagleSpeculator(vllm_config)
        tokens = torch.zeros(SLOTS, V, dtype=torch.int32)
        self.req_states = SimpleNamespace(
            req_id_to_index={}, all_token_ids=SimpleNamespace(gpu=tokens)
        )

    def load_model(self, load_dummy_weights: bool = False) -> None:
        self.speculator.load_model(torch.nn.Linear(1, 1))
        self.sampler, self.rejection_sampler = Sampler(), RejectionSampler()

    def add_requests(self, scheduler_output: Any) -> None:
        for request in scheduler_output.scheduled_new_reqs:
            self.req_states.req_id_to_index[request.req_id] = request.slot
            prompt = torch.tensor(request.prefill_token_ids)
            self.req_states.all_token_ids.gpu[request.slot, : len(prompt)] = prompt

    def sample(self, logits: Tensor, input_batch: Any, grammar_output: Any = None) -> Any:
        drafts = input_batch.num_draft_tokens > 0
        sampler: Any = self.rejection_sampler if drafts else self.sampler
        output = sampler(logits, input_batch)
        return output, output.num_sampled, output.num_rejected

    def sample_tokens(self, logits: Tensor, input_batch: Any) -> None:
        """Sample, and hand on the verdict on the drafts like the runner does before it drafts."""
        _, num_sampled, num_rejected = self.sample(logits, input_batch)
        self.speculator.observe_verification(input_batch.idx_mapping, num_sampled, num_rejected)


@pytest.fixture(autouse=True)
def _patched() -> Any:
    """Make new classes for each test, because the plugin patches them."""
    classes = {
        kind.__name__: type(kind.__name__, (kind,), {})
        for kind in (GPUModelRunner, Sampler, RejectionSampler)
    }
    speculators = f"{V2}.spec_decode.speculator"
    modules = {
        f"{V2}.model_runner": {"GPUModelRunner": classes["GPUModelRunner"]},
        f"{V2}.sample.sampler": {"Sampler": classes["Sampler"]},
        f"{V2}.spec_decode.rejection_sampler": {"RejectionSampler": classes["RejectionSampler"]},
        speculators: {"DraftModelSpeculator": DraftModelSpeculator},
        f"{V2}.cudagraph_utils": {"CudaGraphManager": CudaGraphManager},
    }
    before = {
        name: vars(DraftModelSpeculator)[name]
        for name in ("load_model", "sample_draft", "observe_verification")
    }
    with installed(**modules), pytest.MonkeyPatch.context() as patch:
        for kind in ("Sampler", "RejectionSampler"):
            patch.setitem(globals(), kind, classes[kind])
        v2.install()
        yield classes["GPUModelRunner"]
        for name, function in before.items():
            setattr(DraftModelSpeculator, name, function)


@pytest.fixture
def make(_patched: Any) -> Any:
    def loaded(**settings: Any) -> Any:
        chosen = {"capacity": V, "target_top_k": 1, "learn": False} | settings
        runner = _patched(config(V, microspec=chosen))
        runner.load_model()
        return runner

    return loaded


def request(
    name: str, slot: int, tokens: list[int], cached: int = 0, extra_args: Any = None
) -> Any:
    return SimpleNamespace(
        req_id=name,
        slot=slot,
        prefill_token_ids=tokens,
        num_computed_tokens=cached,
        sampling_params=SimpleNamespace(extra_args=extra_args),
    )


def join(runner: Any, *requests: Any) -> None:
    runner.add_requests(SimpleNamespace(scheduled_new_reqs=list(requests)))


def batch(rows: dict[int, list[int]], logits_of: list[int], padding: int = 3) -> Any:
    """Make a step over the tokens of these slots.

    `logits_of` gives the number of each slot's last tokens that have logits.
    """
    slots, lengths = list(rows), [len(tokens) for tokens in rows.values()]
    text = [token for tokens in rows.values() for token in tokens]
    starts = np.cumsum([0, *lengths, *[0] * padding])
    return SimpleNamespace(
        num_reqs=len(rows),
        num_tokens=len(text),
        num_draft_tokens=sum(logits_of) - len(rows),
        input_ids=torch.tensor(text + [23] * padding, dtype=torch.int32),
        query_start_loc=torch.from_numpy(starts).int(),
        idx_mapping=torch.tensor(slots),
        idx_mapping_np=np.array(slots),
        cu_num_logits_np=np.cumsum([0, *logits_of], dtype=np.int32),
    )


def best(*tokens: int) -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor(tokens), V).float()


def active(runner: Any, slot: int = 0) -> set[int]:
    drafter = drafter_of(runner)
    assert drafter is not None
    ids = drafter.head.vocab.ids[slot]
    return set(ids[ids >= 0].tolist())


def test_off_changes_nothing(_patched: Any) -> None:
    runner = _patched(config(V))
    runner.load_model()
    assert drafter_of(runner) is drafter_of(runner.speculator) is drafter_of(runner.sampler) is None
    join(runner, request("a", 0, [1, 2]))
    runner.sample_tokens(best(4), batch({0: [1, 2]}, [1]))
    hidden = torch.randn(9, DIM)
    want = runner.speculator.model.compute_logits(hidden).argmax(-1)
    assert torch.equal(runner.speculator.sample_draft(hidden, None, torch.zeros(9)), want)


def test_from_prompt_to_drafts(make: Any) -> None:
    runner = make(vocabulary="request", capacity=12)
    join(runner, request("a", 2, [1, 2]), request("b", 0, [7, 8, 9, 10], cached=3))
    assert active(runner, 2) == {1, 2} and active(runner, 0) == {7, 8, 9, 10}
    runner.sample_tokens(best(4, 11), batch({2: [1, 2], 0: [10]}, [1, 1]))
    assert active(runner, 2) == {1, 2, 4} and active(runner, 0) == {7, 8, 9, 10, 11}
    hidden = torch.randn(3, DIM)
    drafts = runner.speculator.sample_draft(hidden, None, torch.tensor([2, 0, -1]))
    dense = runner.speculator.model.compute_logits(hidden)
    for row, slot in enumerate((2, 0)):
        active_tokens = sorted(active(runner, slot))
        assert drafts[row] == active_tokens[int(dense[row, active_tokens].argmax())]
    assert drafts[2] == 0


def test_verified_drafts(make: Any) -> None:
    runner = make(vocabulary="request", capacity=12)
    join(runner, request("a", 1, [5]), request("b", 3, [6]))
    runner.speculator.sample_draft(torch.randn(2, DIM), None, torch.tensor([1, 3]))
    runner.rejection_sampler.tokens = torch.tensor([[5, 9, 22], [8, 22, 22]])
    runner.rejection_sampler.num_sampled = torch.tensor([2, 1])
    runner.sample_tokens(best(5, 9, 12, 8), batch({1: [5, 5, 17], 3: [6]}, [3, 1]))
    # The draft's own token 17 is not looked at.
    assert active(runner, 1) == {5, 9, 12} and active(runner, 3) == {6, 8}
    drafter = drafter_of(runner)
    assert drafter is not None
    stats = drafter.stats()
    assert (stats["hits"], stats["misses"]) == (1, 2)


def test_the_output_copy_does_not_wait_for_what_is_observed(make: Any) -> None:
    """The copy begins between the runner's two calls."""
    runner = make(capacity=12)
    join(runner, request("a", 1, [5]))
    _, num_sampled, num_rejected = runner.sample(best(4), batch({1: [5]}, [1]))
    assert active(runner) == {5}
    runner.speculator.observe_verification(None, num_sampled, num_rejected)
    assert active(runner) == {4, 5}
    runner.speculator.observe_verification(None, num_sampled, num_rejected)  # of no step


def test_learns_from_what_each_request_wrote(make: Any) -> None:
    runner = make(capacity=12, learn=True, target_top_k=0)
    join(runner, request("a", 1, [5]), request("b", 3, [6]))
    runner.speculator.sample_draft(torch.randn(2, DIM), None, torch.tensor([1, 3]))
    runner.rejection_sampler.tokens = torch.tensor([[9, 9, 22], [8, 9, 22]])
    runner.rejection_sampler.num_sampled = torch.tensor([2, 2])
    for _ in range(2):
        runner.sample_tokens(best(9, 9, 12, 8, 9, 9), batch({1: [9, 9, 9], 3: [9, 9, 9]}, [3, 3]))
    drafter = drafter_of(runner)
    assert drafter is not None and drafter.head.learning is not None
    counts = drafter.head.learning.lists.text_counts[0]
    assert {int(token): int(counts[token]) for token in counts.nonzero()} == {8: 1, 9: 2}


def test_a_slot_begins_anew(make: Any) -> None:
    """It is also reset if its previous request returns after preemption."""
    runner = make(vocabulary="request", capacity=12)
    join(runner, request("a", 1, [5]))
    runner.sample_tokens(best(4), batch({1: [5]}, [1]))
    join(runner, request("a", 1, [5, 4, 3], cached=2))
    assert active(runner, 1) == {3, 4, 5}
    join(runner, request("b", 1, [6]))
    assert active(runner, 1) == {6}


def test_a_chunk_of_a_prompt(make: Any) -> None:
    runner = make(capacity=12)
    join(runner, request("a", 1, [5, 6, 7, 8]))
    runner.speculator.sample_draft(torch.randn(1, DIM), None, torch.tensor([1]))
    runner.rejection_sampler.tokens = torch.tensor([[22]])
    runner.rejection_sampler.num_sampled = torch.tensor([0])
    step = batch({1: [5, 6]}, [1])  # whatever the sampler left in its row
    step.num_draft_tokens = 1
    runner.sample_tokens(best(4), step)
    assert active(runner) == {4, 5, 6, 7, 8}


def test_a_sampler_of_the_models_own_is_refused(make: Any) -> None:
    runner = make()
    runner.sampler = lambda logits, input_batch: Sampler.__mro__[1]()(logits, input_batch)
    with pytest.raises(
        UnsupportedError, match="the target's sampler: expected a call of it before draft"
    ):
        runner.sample_tokens(best(4), batch({1: [5]}, [1]))


@pytest.mark.parametrize("step", [0, 1, 2])
def test_the_step_is_passed_on(make: Any, step: int) -> None:
    runner = make(capacity=V)
    join(runner, request("a", 1, list(range(V)), cached=V))
    hidden = torch.randn(40, DIM)
    want = runner.speculator.compute_draft_logits(hidden, step).argmax(-1)
    drafts = runner.speculator.sample_draft(hidden, None, torch.zeros(40), spec_step_idx=step)
    assert torch.equal(drafts, want)


@pytest.mark.parametrize("started", [False, True])
def test_drafts_that_came_another_way_are_refused(make: Any, started: bool) -> None:
    """Also after the start: a server without drafts of its own would only be slower."""
    runner = make()
    drafter = drafter_of(runner)
    assert drafter is not None
    drafter.guard.started = started
    join(runner, request("a", 1, [5]))
    runner.sample_tokens(best(4), batch({1: [5]}, [1]))  # the first step verifies nothing
    with pytest.raises(UnsupportedError, match="the first drafts: expected drafts by the attached"):
        runner.sample_tokens(best(5, 9), batch({1: [5, 5]}, [2]))


def test_nothing_to_win(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    """The log says why; the engine's own LM head drafts, and nothing observes."""
    with caplog.at_level("INFO", logger="vllm.microspec_kernels"):
        runner = make(capacity="auto")
    assert drafter_of(runner) is None and is_decided(runner)
    assert caplog.messages == [
        message for message in caplog.messages if "stays off: all" in message
    ]
    join(runner, request("a", 1, [5]))
    hidden = torch.randn(3, DIM)
    want = runner.speculator.compute_draft_logits(hidden, 0).argmax(-1)
    assert torch.equal(runner.speculator.sample_draft(hidden, None, torch.zeros(3)), want)
    runner.sample_tokens(best(4), batch({1: [5]}, [1]))


@pytest.mark.parametrize("vocabulary", ["shared", "request"])
def test_drawn_drafts(make: Any, vocabulary: str) -> None:
    """vLLM draws from the logits of the active tokens, and keeps them for its verification."""
    runner = make(vocabulary=vocabulary, capacity=12)
    join(runner, request("a", 1, [5, 6, 7]), request("b", 3, [8, 9]))
    hidden, index = torch.randn(2, DIM), torch.tensor([1, 3])
    kept = torch.zeros(SLOTS, 2, V)
    drafts = runner.speculator.sample_draft(hidden, None, index, spec_step_idx=1, draft_logits=kept)
    logits = runner.speculator.compute_draft_logits(hidden, 1)
    for row, slot in enumerate(index.tolist()):
        tokens = sorted(active(runner, slot if vocabulary == "request" else 0))
        want = torch.full((V,), float("-inf"))
        want[tokens] = logits[row, tokens]
        torch.testing.assert_close(kept[slot, 1], want)
        assert int(drafts[row]) in tokens
    assert not kept[:, 0].any() and not kept[[0, 2], 1].any()
    best_ones = runner.speculator.sample_draft(hidden, None, index, spec_step_idx=1)
    assert torch.equal(best_ones, kept[index, 1].argmax(-1))


def test_the_law_of_drawn_drafts_after_verification(make: Any) -> None:
    """Rejection sampling with the kept logits gives a flat target's law, with others another."""
    runner = make(capacity=9)
    join(runner, request("a", 0, list(range(0, 18, 2))))
    torch.manual_seed(5)
    count, hidden = 40_000, torch.randn(1, DIM)
    kept = torch.zeros(count, 1, V)
    rows = torch.arange(count)
    drafts = runner.speculator.sample_draft(hidden.expand(count, -1), None, rows, draft_logits=kept)
    target = (torch.rand(V) + 1).softmax(-1)
    dense = runner.speculator.compute_draft_logits(hidden, 0)[0]
    for logits, holds in ((kept[0, 0], True), (dense, False)):
        law = logits.softmax(-1)
        accepted = torch.rand(count) * law[drafts] < target[drafts]
        rest = (target - law).clamp(min=0).multinomial(count, replacement=True)
        counts = drafts.where(accepted, rest).bincount(minlength=V)
        spread = (count * target * (1 - target)).sqrt()
        assert bool((((counts - count * target) / spread).abs() < 5).all()) == holds
