# SPDX-License-Identifier: Apache-2.0
"""A target under torch.compile writes the same texts, and is compiled in the first steps only."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from microspec_kernels.speculative import Batch, CausalModel

from .models import eagle, example
from .schedule import SHAPE, Text, figures, run

TEXTS = [Text(9, 12)]


def test_a_compiled_target_writes_the_same_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each graph of the backend runs as it was traced. The prompt is not compiled."""
    compiled, calls, compile_with = [], [], torch.compile

    def backend(graph: Any, _: Any) -> Callable[..., Any]:
        compiled.append(graph)

        def run(*arguments: Any) -> Any:
            calls.append(len(compiled))
            return graph.forward(*arguments)

        return run

    monkeypatch.setattr(torch, "compile", lambda decoder: compile_with(decoder, backend=backend))
    target = CausalModel(example("llama")[0])
    expected = run(Batch(target, eagle(target), **SHAPE), TEXTS)
    assert not compiled
    batch = Batch(target, eagle(target), compile=True, **SHAPE)
    batch.join(torch.tensor([3, 1, 4]), 1)
    assert not compiled, "a prompt's pass is not one of a step"
    requests = run(batch, TEXTS)
    assert [figures(one) for one in requests] == [figures(one) for one in expected]
    steps = max(one.stats.steps for one in requests)
    assert steps > 6
    # Two layers are cut in three parts, at the cache.
    assert len(calls) >= 3 * steps
    assert calls[len(calls) // 2] == calls[-1], "nothing is compiled in later steps"
