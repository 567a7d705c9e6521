# SPDX-License-Identifier: Apache-2.0
"""Find a draft model's LM head and its input by running the model's own code.

`compute_logits` differs between EAGLE, EAGLE-3, MTP and standalone drafts: norms before the head,
one head of several, a map to the target's tokens after it. All of them call a LogitsProcessor with
the head and the hidden states; a hook stops them there.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from microspec_kernels.integrations.hooks import UnsupportedError


@dataclass(frozen=True)
class Handed:
    """The arguments of a LogitsProcessor call."""

    processor: Any
    lm_head: Any
    hidden: Tensor
    bias: Tensor | None


ComputeLogits = Callable[[Tensor, int], Any]


class DraftLMHead:
    """A draft model's LM head, found by running the model's `compute_logits` up to it.

    Under graph capture this adds no replay cost: Python runs once, and the graph holds only what
    the model computes before its head. If the model computes nothing there, which :meth:`find`
    finds out, :meth:`input_of` runs none of its code.

    Args:
        model: the draft model.
        compute_logits: computes the logits of hidden states [N, H] in one of the draft's steps, as
            vLLM does; None: the model's `compute_logits`, the same in every step.

    Attributes:
        dtype: dtype of the model's logits, known after :meth:`tokens`.
    """

    def __init__(self, model: Any, compute_logits: ComputeLogits | None = None) -> None:
        from vllm.model_executor.layers.logits_processor import LogitsProcessor

        self._model = model
        self._compute_logits = compute_logits or (lambda hidden, _: model.compute_logits(hidden))
        self._where = f"vllm: {type(model).__name__}.compute_logits"
        self._stops = False
        self._direct: list[tuple[nn.Module, str]] | None = None
        self._processors: list[Any] = [
            part for part in model.modules() if isinstance(part, LogitsProcessor)
        ]
        self.dtype = torch.float32
        for processor in self._processors:
            processor.register_forward_pre_hook(self._stop, with_kwargs=True)
        self._signature = inspect.signature(LogitsProcessor.forward)

    def handed(self, hidden: Tensor, step: int = 0) -> Handed:
        """Return what the LM head receives for the draft's hidden states [N, H].

        Args:
            hidden: [N, H], the draft model's output.
            step: index of the draft's step. Multi-token prediction may have a module for each.

        Raises:
            UnsupportedError: the model does not call a LogitsProcessor.
        """
        self._stops = True
        try:
            self._compute_logits(hidden, step)
        except _Stopped as stopped:
            return stopped.handed
        finally:
            self._stops = False
        raise UnsupportedError(self._where, "a call of the model's LogitsProcessor", "none")

    def find(self, hidden: Tensor, steps: int) -> list[Handed]:
        """Return what the LM head receives in each of the draft's steps. Call once, at attach.

        Finds out whether the model hands hidden states on as they are, in all steps.

        Args:
            hidden: [1, H], any hidden state of the width that vLLM passes.
            steps: the number of the draft's steps.

        Raises:
            UnsupportedError: the model's code fails on the hidden state.
        """
        try:
            handed = [self.handed(hidden, step) for step in range(steps)]
        except Exception as error:
            expected = f"logits of hidden states [1, {hidden.size(1)}]"
            raise UnsupportedError(self._where, expected, repr(error)) from error
        if all(each.hidden is hidden for each in handed):
            places = {
                id(child): (module, name)
                for module in self._model.modules()
                for name, child in module.named_children()
            }
            if all(id(each.lm_head) in places for each in handed):
                self._direct = [places[id(each.lm_head)] for each in handed]
        return handed

    def input_of(self, hidden: Tensor, lm_head: Any, step: int = 0) -> Tensor:
        """Return the input of the LM head for the draft's hidden states [N, H].

        Args:
            hidden, step: as for :meth:`handed`.
            lm_head: the head that :meth:`find` found for the step.

        Raises:
            UnsupportedError: the model calls another LM head now.
        """
        if self._direct is not None:
            owner, name = self._direct[step]
            found, result = getattr(owner, name), hidden
        else:
            handed = self.handed(hidden, step)
            found, result = handed.lm_head, handed.hidden
        _check_same(found, lm_head)
        return result

    @contextmanager
    def replaced(self, lm_head: Any, logits: Callable[[Tensor], Tensor]) -> Iterator[None]:
        """Compute the logits of the LM head by another function, for as long as this lasts.

        The model's code before the head and its map to the target's tokens stay.

        Args:
            lm_head: the head that :meth:`find` found.
            logits: returns [N, R] for the input of the LM head [N, D].

        Raises:
            UnsupportedError: the model calls another LM head.
        """

        def forward(
            called: Any, hidden_states: Tensor, embedding_bias: Tensor | None = None
        ) -> Tensor:
            _check_same(called, lm_head)
            return logits(hidden_states).to(self.dtype)

        for processor in self._processors:
            processor.forward = forward
        try:
            yield
        finally:
            for processor in self._processors:
                del processor.forward

    def tokens(self, like: Tensor, step: int = 0) -> Tensor:
        """Return the target's tokens with finite logits in the model's own output, int64 ascending.

        Waits for the device.

        Args:
            like: any hidden state [1, H].
            step: as for :meth:`handed`.
        """
        logits: Tensor = self._compute_logits(torch.zeros_like(like), step)
        self.dtype = logits.dtype
        return logits[0].isfinite().nonzero()[:, 0]

    def _stop(self, processor: nn.Module, args: Any, kwargs: Any) -> None:
        if self._stops:
            arguments = self._signature.bind(processor, *args, **kwargs).arguments
            raise _Stopped(
                Handed(
                    processor,
                    arguments["lm_head"],
                    arguments["hidden_states"],
                    arguments.get("embedding_bias"),
                )
            )


def _check_same(found: Any, lm_head: Any) -> None:
    if found is not lm_head:
        where, other = "vllm: the draft's LM head", type(found).__name__
        raise UnsupportedError(where, "the one that was attached to", other)


class _Stopped(Exception):
    def __init__(self, handed: Handed) -> None:
        super().__init__("at the LM head")
        self.handed = handed
