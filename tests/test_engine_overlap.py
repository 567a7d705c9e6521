# SPDX-License-Identifier: Apache-2.0
"""An EngineHead gathers beside the draft: whoever reads or changes what it uses waits for it.

The stand-in for a CUDA device runs one of the two streams as late as events allow.
"""

from collections.abc import Callable, Iterator
from typing import Any

import fake_cuda
import pytest
import torch
from compare import assert_bitwise
from torch import Tensor

from microspec_kernels import ActiveVocab, WeightSlab
from microspec_kernels.engine import EngineHead, Settings

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a real GPU")

V, DIM, ROWS, STEPS = 40, 16, 4, 6
BESIDE, DRAFT = "beside", "draft"  # the streams that may be late


@pytest.fixture(autouse=True)
def _installed() -> Iterator[None]:
    with fake_cuda.installed():
        yield


def late_stream(which: str) -> Callable[[Any], bool]:
    drafting = torch.cuda.current_stream()
    return lambda stream: (stream == drafting) == (which == DRAFT)


class Draft:
    """A draft of an engine, captured by a graph with its own buffers."""

    def __init__(self, head: EngineHead, rng: torch.Generator) -> None:
        self.head, self.rng = head, rng
        self.hidden = torch.zeros(ROWS, DIM, device="cuda")
        self.tokens = torch.zeros(ROWS, dtype=torch.int64, device="cuda")

    def __call__(self) -> None:
        self.tokens.copy_(self.head.argmax(self.hidden))

    def capture(self) -> torch.cuda.CUDAGraph:
        """Capture the draft, which has run once before."""
        self()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self()
        return graph

    def load(self) -> Tensor:
        """Return new hidden states, which are in the draft's buffer, too."""
        hidden = torch.randint(-2, 3, (ROWS, DIM), generator=self.rng).float()
        self.hidden.copy_(hidden.pin_memory(), non_blocking=True)
        return hidden


class Engine:
    """A head on the device with a draft, and its twin on the CPU."""

    def __init__(self, **options: Any) -> None:
        rng = torch.Generator().manual_seed(3)
        self.weight = torch.randint(-3, 4, (V, DIM), generator=rng).float()
        settings = Settings(**({"capacity": 8, "mode": "packed", "learn": False} | options))
        self.there = self.weight.to("cuda")
        self.rng, self.twin = rng, EngineHead(self.weight, settings)
        self.head = EngineHead(self.there, settings)
        self.draft = Draft(self.head, rng)

    def tokens(self) -> Tensor:
        return torch.randint(0, V, (5,), generator=self.rng)


def observe(engine: Engine, tokens: Tensor) -> None:
    engine.twin.observe(tokens)
    engine.head.observe(tokens.to("cuda"))


def admit_and_observe(engine: Engine, tokens: Tensor) -> None:
    """Change the vocabulary twice, without a draft in between that would wait."""
    for head, there in ((engine.twin, tokens), (engine.head, tokens.to("cuda"))):
        head.admit(there[:2])
        head.observe(there[2:])


def begin_and_observe(engine: Engine, tokens: Tensor) -> None:
    for head, there in ((engine.twin, tokens), (engine.head, tokens.to("cuda"))):
        head.begin([0], [tokens[:2]])
        head.observe(there[2:])


def reset_and_observe(engine: Engine, tokens: Tensor) -> None:
    for head, there in ((engine.twin, tokens), (engine.head, tokens.to("cuda"))):
        head.observe(there[:2])
        head.reset()
        head.observe(there[2:])


def reload_and_observe(engine: Engine, tokens: Tensor) -> None:
    observe(engine, tokens[:2])
    new = engine.weight.roll(1, 0)
    for head, weight in ((engine.twin, engine.weight), (engine.head, engine.there)):
        weight.copy_(new)
        head.reload()
    observe(engine, tokens[2:])


CHANGES = [observe, admit_and_observe, begin_and_observe, reset_and_observe, reload_and_observe]


# An eager draft runs at once in the stand-in, so it is never late.
@pytest.mark.parametrize(
    ("captured", "late"),
    [(True, BESIDE), (True, DRAFT), (False, BESIDE)],
    ids=["captured-beside", "captured-draft", "eager-beside"],
)
@pytest.mark.parametrize("change", CHANGES)
def test_drafts_read_what_was_gathered_last(
    captured: bool, change: Callable[[Engine, Tensor], None], late: str
) -> None:
    engine = Engine(slab_dtype="int8")
    # The capture comes before anything is observed.
    draft = engine.draft.capture().replay if captured else engine.draft
    drafts = []
    for _ in range(STEPS):
        with fake_cuda.late(late_stream(late)):
            change(engine, engine.tokens())
            hidden = engine.draft.load()
            draft()
            torch.cuda.synchronize()
        drafts.append(engine.draft.tokens.tolist())
        assert_bitwise(engine.draft.tokens.cpu(), engine.twin.argmax(hidden))
    assert len(set(map(tuple, drafts))) > STEPS // 2, "the tokens differ"


@pytest.mark.parametrize("late", [BESIDE, DRAFT])
def test_a_gather_waits_for_the_draft_before(late: str) -> None:
    """The host is two steps ahead: the first draft has not read the slab when it is to change."""
    engine = Engine()
    drafts = [engine.draft, Draft(engine.head, engine.rng)]
    graphs, want = [draft.capture() for draft in drafts], []
    hiddens = [draft.load() for draft in drafts]
    with fake_cuda.late(late_stream(late)):
        for graph, hidden in zip(graphs, hiddens, strict=True):
            observe(engine, engine.tokens())
            graph.replay()
            want.append(engine.twin.argmax(hidden))
        torch.cuda.synchronize()
    for draft, tokens in zip(drafts, want, strict=True):
        assert_bitwise(draft.tokens.cpu(), tokens)


def test_without_external_events_the_draft_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """With ROCm before 7, PyTorch refuses them: the gather runs before the draft, as it may not
    be waited for."""

    def refuse(external: bool = False, **options: Any) -> Any:
        if external:
            raise RuntimeError("External CUDA-graph events on ROCm require ROCm 7.0+")
        return event(**options)

    event = torch.cuda.Event
    monkeypatch.setattr(torch.cuda, "Event", refuse)
    engine = Engine()
    graph = engine.draft.capture()
    for _ in range(STEPS):
        with fake_cuda.late(late_stream(BESIDE)):
            observe(engine, engine.tokens())
            hidden = engine.draft.load()
            graph.replay()
            torch.cuda.synchronize()
        assert_bitwise(engine.draft.tokens.cpu(), engine.twin.argmax(hidden))


def test_two_buffers_are_refused() -> None:
    slab = WeightSlab(torch.zeros(V, DIM), ActiveVocab(V, 4), buffers=2)
    with pytest.raises(ValueError, match=r"^WeightSlab: refresh_beside_graphs: buffers: .* got 2$"):
        slab.refresh_beside_graphs()
