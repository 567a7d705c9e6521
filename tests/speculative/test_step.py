# SPDX-License-Identifier: Apache-2.0
"""What a step costs the host: operator calls and reads."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as functional
from fake_cuda.rules import WAITING
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from microspec_kernels.speculative import Batch, CausalModel, Sampling

from .models import VOCAB, eagle, example, prompt

# These calls make another view of the same memory, memory without values, or a number on the host:
# they launch nothing.
LAUNCH_NOTHING = {
    "alias", "as_strided", "chunk", "detach", "empty", "empty_like", "expand", "lift_fresh",
    "permute", "scalar_tensor", "select", "slice", "split", "split_with_sizes", "squeeze", "t",
    "transpose", "unbind", "unsqueeze", "view", "_unsafe_view", "_local_scalar_dense",
}  # fmt: skip
FREQUENT = torch.randperm(VOCAB, generator=torch.Generator().manual_seed(7))


class Reads(TorchFunctionMode):
    """Record the functions that read a value on the host."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function in WAITING:
            self.names.append(function.__name__)
        return function(*args, **(kwargs or {}))


class Launches(TorchDispatchMode):
    """Record the operator calls that launch something, except inside `outside`."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self._counts = True

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = function.overloadpacket.__name__
        if name not in LAUNCH_NOTHING and self._counts:
            self.names.append(name)
        return function(*args, **(kwargs or {}))

    @contextmanager
    def without(self, *methods: tuple[Any, str]) -> Iterator[None]:
        """Do not record what these methods call."""
        with ExitStack() as stack:
            for owner, name in methods:
                stack.enter_context(patch.object(owner, name, self._silent(getattr(owner, name))))
            yield

    @contextmanager
    def as_on_a_gpu(self) -> Iterator[None]:
        """Record an RMS norm as one call. On a CPU PyTorch makes it of six, on a GPU of one."""
        norm = functional.rms_norm

        def call(*args: Any, **kwargs: Any) -> Any:
            if self._counts:
                self.names.append("rms_norm")
            return self._silent(norm)(*args, **kwargs)

        with patch.object(functional, "rms_norm", call):
            yield

    def _silent(self, method: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            before, self._counts = self._counts, False
            try:
                return method(*args, **kwargs)
            finally:
                self._counts = before

        return call


def batch_of_one(**options: Any) -> Batch:
    target = CausalModel(example("llama")[0])
    batch = Batch(target, eagle(target), frequent_tokens=FREQUENT, capacity=64, **options)
    batch.join(prompt(24), 64)
    batch.step()
    return batch


@pytest.mark.parametrize(
    ("options", "outside", "with_draft"),
    [({}, 64, 148), ({"depth": 3, "tree_width": 2, "tree_size": 6}, 49, 91)],
    ids=["depth6", "depth3"],
)
def test_a_greedy_step_makes_few_operator_calls_and_one_read(
    options: dict[str, Any], outside: int, with_draft: int
) -> None:
    """At most `outside` beside the models' passes, and `with_draft` with the draft's.

    Every call that reaches PyTorch's dispatcher counts, except views and allocations.
    """
    batch = batch_of_one(**options)
    target: Any = batch.target
    draft: Any = batch.draft
    models = ((target, "forward"), (target, "logits"))
    for methods, most in ((models, with_draft), ((*models, (draft, "_read")), outside)):
        launches, reads = Launches(), Reads()
        with launches.without(*methods), launches.as_on_a_gpu(), launches, reads:
            batch.step()
        assert len(launches.names) <= most, sorted(launches.names)
        assert reads.names == ["tolist"]


def test_a_drawn_chain_reads_once() -> None:
    batch, reads = batch_of_one(sampling=Sampling(1.0), chain=True, depth=3), Reads()
    with reads:
        batch.step()
    assert reads.names == ["tolist"]
