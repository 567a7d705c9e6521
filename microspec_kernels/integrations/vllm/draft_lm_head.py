# SPDX-License-Identifier: Apache-2.0
"""Find a draft model's LM head and its input by running the model's own code.

`compute_logits` differs between EAGLE, EAGLE-3, MTP and standalone drafts: norms before the head,
one head of several, a map to the target's tokens after it. All of them call a LogitsProcessor with
the head and the hidden states; a hook stops them there.
"""

import inspect
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


class DraftLMHead:
    """A draft model's LM head, found by running the model's `compute_logits` up to it.

    Under graph capture this adds no replay cost: Python runs once, and the graph holds only what
    the model computes before its head. If the model computes nothing there, which the first call of
    :meth:`handed` finds, :meth:`input_of` runs none of its code.
    """

    def __init__(self, model: Any) -> None:
        from vllm.model_executor.layers.logits_processor import LogitsProcessor

        self._model = model
        self._where = f"vllm: {type(model).__name__}.compute_logits"
        self._stops = False
        self._direct: tuple[nn.Module, str] | None = None
        processors = [part for part in model.modules() if isinstance(part, LogitsProcessor)]
        for processor in processors:
            processor.register_forward_pre_hook(self._stop, with_kwargs=True)
        self._signature = inspect.signature(LogitsProcessor.forward)

    def handed(self, hidden: Tensor) -> Handed:
        """Return what the LM head receives for the draft's hidden states [N, H].

        Raises:
            UnsupportedError: the model does not call a LogitsProcessor.
        """
        self._stops = True
        try:
            self._model.compute_logits(hidden)
        except _Stopped as stopped:
            return stopped.handed
        finally:
            self._stops = False
        raise UnsupportedError(self._where, "a call of the model's LogitsProcessor", "none")

    def find(self, hidden: Tensor) -> Handed:
        """Return what :meth:`handed` returns, and find out whether the model hands hidden on as is.

        Raises:
            UnsupportedError: as :meth:`handed`.
        """
        handed = self.handed(hidden)
        if handed.hidden is hidden:
            for module in self._model.modules():
                for name, child in module.named_children():
                    if child is handed.lm_head:
                        self._direct = (module, name)
        return handed

    def input_of(self, hidden: Tensor, lm_head: Any) -> Tensor:
        """Return the input of the LM head for the draft's hidden states [N, H].

        Args:
            lm_head: the head that :meth:`find` found.

        Raises:
            UnsupportedError: the model calls another LM head now.
        """
        if self._direct is not None:
            owner, name = self._direct
            found, result = getattr(owner, name), hidden
        else:
            handed = self.handed(hidden)
            found, result = handed.lm_head, handed.hidden
        if found is not lm_head:
            other = type(found).__name__
            raise UnsupportedError(
                "vllm: the draft's LM head", "the one that was attached to", other
            )
        return result

    def tokens(self, like: Tensor) -> Tensor:
        """Return the target's tokens with finite logits in the model's own output, int64 ascending.

        Waits for the device.

        Args:
            like: any hidden state [1, H].
        """
        logits: Tensor = self._model.compute_logits(torch.zeros_like(like))
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


class _Stopped(Exception):
    def __init__(self, handed: Handed) -> None:
        super().__init__("at the LM head")
        self.handed = handed
