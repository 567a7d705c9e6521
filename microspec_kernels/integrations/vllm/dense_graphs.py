# SPDX-License-Identifier: Apache-2.0
"""Capture the graphs of model runner V2's draft with both heads, and choose among them.

A speculator captures its draft's steps, LM head included, with its `CudaGraphManager`s. Here it
captures them twice, into the same memory pool: with the active vocabulary, then with vLLM's own LM
head. Both sets read and write the same buffers of the speculator, so either may be replayed in any
step.
"""

from collections.abc import Callable, Iterator
from typing import Any

from microspec_kernels.integrations.hooks import HeadChoice

_BOTH = "microspec_graphs"


def capture_both(speculator: Any, capture: Callable[[], None], choice: HeadChoice) -> None:
    """Capture a speculator's graphs with the active vocabulary and with vLLM's own LM head.

    Args:
        speculator: a DraftModelSpeculator with its managers, if it has any.
        capture: captures its graphs.
        choice: chooses the graphs to replay from now on.
    """
    choice.switch = lambda dense: None
    managers = list(_managers(speculator))
    shapes = [manager._capture_descs for manager in managers]  # capture may replace them
    with choice.fixed(False):
        capture()
    captured = [(manager.graphs, manager._capture_descs) for manager in managers]
    if not choice.allowed or not any(graphs for graphs, _ in captured):
        return
    for manager, of_modes in zip(managers, shapes, strict=True):
        # Piecewise graphs end before the LM head, so they serve both.
        full = {mode: shape for mode, shape in of_modes.items() if mode.name == "FULL"}
        manager.graphs, manager._capture_descs = {}, full
    with choice.fixed(True):
        capture()
    for manager, (graphs, after) in zip(managers, captured, strict=True):
        setattr(manager, _BOTH, (graphs, manager.graphs))
        manager._capture_descs = after
    _replay(speculator, choice.dense)
    choice.switch = lambda dense: _replay(speculator, dense)


def _replay(speculator: Any, dense: bool) -> None:
    for manager in _managers(speculator):
        if hasattr(manager, _BOTH):
            manager.graphs = getattr(manager, _BOTH)[dense]


def _managers(speculator: Any) -> Iterator[Any]:
    from vllm.v1.worker.gpu.cudagraph_utils import CudaGraphManager

    for value in vars(speculator).values():
        if isinstance(value, CudaGraphManager):
            yield value
