# SPDX-License-Identifier: Apache-2.0
"""A vLLM draft model with its LM head over an active vocabulary, for both model runners."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from microspec_kernels.engine import EngineHead
from microspec_kernels.integrations.hooks import StoredRows, UnsupportedError

from .draft_lm_head import DraftLMHead
from .metrics import Metrics

_ATTRIBUTE = "microspec_drafter"


def drafter_of(holder: Any) -> "Drafter | None":
    """Return the drafter of a speculator, sampler or runner; None if it has none."""
    drafter: Drafter | None = getattr(holder, _ATTRIBUTE, None)
    return drafter


def hold(holder: Any, drafter: "Drafter") -> None:
    """Store the drafter on one of the engine's objects, for :func:`drafter_of`."""
    setattr(holder, _ATTRIBUTE, drafter)


class Drafter:
    """Pass what the runner's hooks receive to the draft's :class:`EngineHead`.

    `request_index` in the methods is the index at which the runner keeps each request while it
    runs: int32 or int64, -1 for padding. It may be None if one vocabulary serves all requests.

    Args:
        lm_head: the draft model's LM head.
        module: vLLM's layer of that head.
        rows: the rows of `module` that `head` reads.
        head: an :class:`EngineHead` over `rows`.
        metrics: reports the head's counters.
    """

    def __init__(
        self,
        lm_head: DraftLMHead,
        module: Any,
        rows: StoredRows,
        head: EngineHead,
        metrics: Metrics,
    ) -> None:
        self.head = head
        self._lm_head, self._module, self._rows, self._metrics = lm_head, module, rows, metrics
        self._shared = head.settings.vocabulary == "shared"
        self._likeliest: tuple[Tensor, Tensor | None] | None = None
        self._drafts = False

    def draft(self, hidden: Tensor, request_index: Tensor | None = None, step: int = 0) -> Tensor:
        """Return the draft's tokens int64 [N] for its hidden states [N, H]. May be captured.

        `step` is the index of the draft's step, see :meth:`DraftLMHead.handed`.

        Raises:
            UnsupportedError: the model calls another LM head than the attached one.
        """
        self._drafts = True
        handed = self._lm_head.handed(hidden, step)
        if handed.lm_head is not self._module:
            other = type(handed.lm_head).__name__
            raise UnsupportedError(
                "vllm: the draft's LM head", "the one that was attached to", other
            )
        return self.head.argmax(handed.hidden, None if self._shared else request_index)

    def begin(self, request_index: Sequence[int], prefixes: Sequence[Sequence[int]]) -> None:
        """Begin new requests.

        Args:
            request_index: index of each new request.
            prefixes: each request's tokens whose keys and values are cached. No step will run them,
                so the vocabulary observes them here.
        """
        device = self._rows.weight.device
        if not self._shared:
            self.head.reset(_to(device, request_index))
        if any(prefixes):
            lengths = [len(prefix) for prefix in prefixes]
            pairs = zip(request_index, lengths, strict=True)
            groups = [index for index, length in pairs for _ in range(length)]
            tokens = [token for prefix in prefixes for token in prefix]
            self.head.observe(_to(device, tokens), None if self._shared else _to(device, groups))

    def check_use(self) -> None:
        """Check that the drafts came from this drafter. Call when the target verifies drafts.

        Raises:
            UnsupportedError: vLLM drafted without calling :meth:`draft`.
        """
        if not self._drafts:
            where = "vllm: the first drafts"
            raise UnsupportedError(where, "drafts by the attached LM head", "drafts by another way")

    def keep(self, logits: Tensor, request_index: Tensor | None = None) -> None:
        """Keep the target's likeliest tokens of this step until :meth:`observe`.

        Call before the sampler, which may write into the logits.

        Args:
            logits: [R, V], the target's logits of the verified rows.
            request_index: [R], each row's request.
        """
        self._likeliest = self.head.top_target_tokens(logits), request_index

    def observe(
        self,
        text: Tensor,
        sampled: Tensor,
        drafted: Tensor,
        request_index: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> None:
        """Observe a step of the target. Call eagerly, before the draft's next step; never waits.

        Args:
            text: [N], the tokens that the target ran, drafts included.
            sampled: [B, n], the tokens that continue each text, then -1.
            drafted: bool [B], whether the text had drafts.
            request_index: [B], each text's index.
            lengths: [B], each text's number of tokens in `text`.

        Raises:
            UnsupportedError: :meth:`keep` was not called in this step.
        """
        if self._likeliest is None:
            raise UnsupportedError(
                "vllm: the target's sampler", "a call of it before drafting", "none"
            )
        (likeliest, row_index), self._likeliest = self._likeliest, None
        tokens = torch.cat((text, likeliest.flatten(), sampled.flatten()))
        groups = groups_of_sampled = None
        if not self._shared:
            assert request_index is not None and row_index is not None and lengths is not None
            groups_of_sampled = request_index.repeat_interleave(sampled.size(1))
            groups_of_text = request_index.repeat_interleave(lengths, output_size=len(text))
            groups_of_likeliest = row_index.repeat_interleave(likeliest.size(1))
            groups = torch.cat((groups_of_text, groups_of_likeliest, groups_of_sampled))
        counted = sampled.masked_fill(~drafted[:, None], -1).flatten()
        self.head.count_coverage(counted, groups_of_sampled)
        self.head.observe(tokens, groups)
        self._metrics.tick()

    def reset(self) -> None:
        """Reset the vocabularies, the totals and the kept tokens."""
        self._likeliest = None
        self.head.reset()
        self._metrics.reset()

    def reload(self) -> None:
        """Update the head after the draft's weights changed in place.

        Raises:
            UnsupportedError: the weights lie at another address now.
        """
        if self._rows.moved():
            raise UnsupportedError(
                "vllm: reload_weights", "the draft's LM head at its old address", "other"
            )
        self._rows.refresh()
        self.head.reload()

    def stats(self, wait: bool = True) -> dict[str, Any] | None:
        """Return the newest totals; see :meth:`Metrics.newest`."""
        return self._metrics.newest(wait)


def _to(device: torch.device, values: Sequence[int]) -> Tensor:
    """Copy values to the device as int64 [n], without waiting for the copy."""
    tensor = torch.tensor(values, dtype=torch.int64, pin_memory=device.type == "cuda")
    return tensor.to(device, non_blocking=True)
