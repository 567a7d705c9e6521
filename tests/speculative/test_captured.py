# SPDX-License-Identifier: Apache-2.0
"""The loop on a GPU: steps that are replayed graphs write the texts of the plain loop.

The GPU is a pretended one; see paths.py.
"""

import copy
from itertools import pairwise
from pathlib import Path
from typing import Any

import fake_cuda
import pytest
import torch
import transformers

from microspec_kernels.speculative import (
    Batch,
    CausalModel,
    ModelDraft,
    Request,
    Sampling,
    Timeline,
    load_draft,
)
from microspec_kernels.speculative.models.supported import WITH_EXPERTS

from .models import VOCAB, eagle, example, noisy, tiny
from .mtp_modules import written as write_modules
from .paths import pretended
from .schedule import SHAPE, Text, figures, run
from .test_mtp import helpful, is_known, predictable

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a real GPU")

FREQUENT = torch.randperm(VOCAB, generator=torch.Generator().manual_seed(7))
# They join one after the other, leave at different steps, and the later ones take their rows.
TEXTS = [
    Text(9, 12),
    Text(21, 7, seed=3),
    Text(4, 12, joins=1, seed=1),
    Text(14, 9, joins=4, seed=2),
]


def written(device: str, model: Any, draft: Any = None, **options: Any) -> list[Request]:
    """Continue TEXTS; without a draft model, an EAGLE draft drafts."""
    model, draft = copy.deepcopy(model).to(device), copy.deepcopy(draft)
    target = CausalModel(model)
    draft = eagle(target) if draft is None else ModelDraft(draft.to(device))
    return run(Batch(target, draft, frequent_tokens=FREQUENT, **{**SHAPE, **options}), TEXTS)


CASES: dict[str, dict[str, Any]] = {
    "dense": {"head": "dense"},
    "static": {"head": "static", "capacity": 90},
    "shared": {"capacity": 40},
    "one a text": {"capacity": 40, "num_groups": 2},
    "packed": {"capacity": 40, "num_groups": 2, "mode": "packed"},
    "drawn": {"capacity": 40, "sampling": Sampling(1.5)},
    "drawn, warped": {"capacity": 40, "sampling": Sampling(0.9, top_p=0.9, top_k=20)},
    "chain": {"capacity": 40, "chain": True},
    "drawn chain": {"capacity": 40, "chain": True, "sampling": Sampling(1.5)},
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("drafts", ["model", "eagle"])
def test_replayed_steps_write_the_same_texts(
    drafts: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = example("llama")[0]
    arguments = (model, noisy(model)) if drafts == "model" else (model,)
    expected = written("cpu", *arguments, **CASES[name])
    with pretended(monkeypatch) as device:
        requests = written("cuda", *arguments, **CASES[name])
    assert [figures(one) for one in requests] == [figures(one) for one in expected]
    # The first step with each number of texts only warms up.
    assert 0 < device.replays <= 2 * device.steps
    assert device.waits == device.steps


WINDOWS: dict[str, dict[str, Any]] = {
    "qwen2": {"sliding_window": 9, "use_sliding_window": True, "max_window_layers": 1},
    "gemma3_text": {"sliding_window": 9},
}


@pytest.mark.parametrize("kind", WINDOWS)
def test_windows_are_captured(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(kind, **WINDOWS[kind])
    expected = written("cpu", model, noisy(model, 0.01), head="dense")
    with pretended(monkeypatch) as device:
        requests = written("cuda", model, noisy(model, 0.01), head="dense")
    assert [one.tokens for one in requests] == [one.tokens for one in expected]
    assert device.replays > 0


def test_a_timeline_has_the_gather_on_its_own_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock waits for the device only when it is asked."""
    model, options = example("llama")[0], {**CASES["packed"], "capture": False}
    expected = written("cpu", model, **options)
    with pretended(monkeypatch):
        clock = Timeline(torch.device("cuda", 0))
        requests = written("cuda", model, **options, timeline=clock)
        torch.cuda.set_sync_debug_mode("default")
        steps = clock.steps()
    assert [figures(one) for one in requests] == [figures(one) for one in expected]
    assert len(steps) > 5
    for length, spans in steps:
        assert all(0 <= span.start <= span.end <= length for span in spans)
        lanes = {span.part: span.stream for span in spans}
        assert lanes.pop("gather") == "side stream" and set(lanes.values()) == {"main stream"}
        assert lanes.keys() == {"head", "tree", "draft_layer", "verify", "vocabulary"}
        main = [span for span in spans if span.stream == "main stream"]
        assert all(one.end <= other.start for one, other in pairwise(main))


def with_experts(kind: str, implementation: str) -> Any:
    experts = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2}
    model = tiny(kind, **experts)
    model.set_experts_implementation(implementation)
    return model


@pytest.mark.skipif(int(transformers.__version__.partition(".")[0]) < 5, reason="transformers < 5")
@pytest.mark.parametrize(
    ("kind", "implementation", "dtype"),
    [
        ("mixtral", "batched_mm", torch.float32),
        ("mixtral", "grouped_mm", torch.bfloat16),
        *(
            pytest.param(kind, "batched_mm", torch.float32, marks=pytest.mark.slow)
            for kind in WITH_EXPERTS
            if kind != "mixtral"
        ),
    ],
)
def test_experts_of_fixed_shapes_are_captured(
    kind: str, implementation: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = with_experts(kind, implementation).to(dtype)
    expected = written("cpu", model, noisy(model, 0.01), head="dense")
    with pretended(monkeypatch) as device:
        requests = written("cuda", model, noisy(model, 0.01), head="dense")
    assert [one.tokens for one in requests] == [one.tokens for one in expected]
    assert device.replays > 0


@pytest.mark.parametrize("options", [{"timed": True}, {"capture": False}], ids=str)
def test_graphs_can_be_turned_off(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model = example("llama")[0]
    expected = written("cpu", model)
    with pretended(monkeypatch) as device:
        if "timed" in options:  # the clock waits
            monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: None)
        requests = written("cuda", model, **options)
    assert [figures(one) for one in requests] == [figures(one) for one in expected]
    assert device.replays == 0


def test_what_no_graph_can_capture_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    assert CausalModel(example("llama")[0]).capturable
    for implementation in ("eager", "grouped_mm"):  # the latter on a CPU, in fp32
        assert not CausalModel(with_experts("mixtral", implementation)).capturable
    with fake_cuda.installed():
        assert not CausalModel(with_experts("mixtral", "grouped_mm").to("cuda")).capturable
        model = with_experts("mixtral", "grouped_mm").to("cuda", torch.bfloat16)
        assert CausalModel(model).capturable
        for major, captures in ((8, False), (10, True), (12, False)):
            monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_, m=major: (m, 0))
            assert CausalModel(model).capturable == captures
    assert not CausalModel(tiny("llama", rope_parameters=rope)).capturable


@pytest.mark.parametrize(
    ("name", "count"),
    [(name, count) for name, count in (("mimo", 1), ("mimo", 3), ("qwen3.5", 1)) if is_known(name)],
)
def test_mtp_modules(
    name: str, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Modules without experts are captured, and so read no value on the host."""
    model = predictable()
    states = [helpful(name, CausalModel(model), seed) for seed in range(count)]
    write_modules(tmp_path, name, states)
    shape = {**SHAPE, "depth": max(3, count + 2)}

    def texts(device: str) -> list[Request]:
        target = CausalModel(copy.deepcopy(model).to(device))
        draft = load_draft(tmp_path, target)
        return run(Batch(target, draft, capacity=40, num_groups=2, **shape), TEXTS)

    expected = texts("cpu")
    with pretended(monkeypatch) as device:
        requests = texts("cuda")
    assert [figures(one) for one in requests] == [figures(one) for one in expected]
    assert any(length > 1 for one in requests for length in one.stats.acceptance_lengths)
    assert device.replays > 0 and device.waits == device.steps
