# SPDX-License-Identifier: Apache-2.0
"""A vLLM draft model with its LM head over an active vocabulary, for both model runners."""

import logging
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from microspec_kernels.engine import EngineHead
from microspec_kernels.engine.draft_head import DraftHead
from microspec_kernels.integrations.hooks import (
    Guard,
    HeadChoice,
    LeftOut,
    StoredRows,
    TokenRequests,
    UnsupportedError,
    has_opted_out,
)

from .draft_lm_head import DraftLMHead
from .metrics import Metrics

logger = logging.getLogger(f"vllm.{__name__}")  # vLLM shows its own loggers only

_ATTRIBUTE = "microspec_drafter"
_AFTER_A_FAILURE = "drafts come from the engine's own LM head"
_OF_ONE_CAPTURE = "; captured graphs draft from the tokens active now"


def drafter_of(holder: Any) -> "Drafter | None":
    """Return the drafter of a speculator, sampler or runner; None if it has none, or it failed."""
    drafter: Drafter | None = getattr(holder, _ATTRIBUTE, None)
    return None if drafter is None or drafter.guard.failed else drafter


def hold(holder: Any, drafter: "Drafter | None") -> None:
    """Store the drafter, or that there is nothing to win, on one of the engine's objects."""
    setattr(holder, _ATTRIBUTE, drafter)


def is_decided(holder: Any) -> bool:
    """Return whether :func:`hold` was called."""
    return hasattr(holder, _ATTRIBUTE)


@dataclass(frozen=True)
class StepHead:
    """The LM head of a draft's step.

    Attributes:
        module: vLLM's layer.
        rows: the rows of `module` that `head` reads.
        head: scores the active ones.
    """

    module: Any
    rows: StoredRows
    head: DraftHead


class Drafter:
    """Pass what the runner's hooks receive to the draft's :class:`EngineHead`.

    Args:
        lm_head: the draft model's LM head.
        steps: the head of each of the draft's steps. Several may be the same object.
        head: an :class:`EngineHead` over the vocabulary of all of them: that of the first step.
        metrics: reports the head's counters.
        choice: chooses between `head` and vLLM's own.

    Attributes:
        guard: runs the hooks after the start.
    """

    def __init__(
        self,
        lm_head: DraftLMHead,
        steps: Sequence[StepHead],
        head: EngineHead,
        metrics: Metrics,
        choice: HeadChoice,
    ) -> None:
        self.head, self.choice = head, choice
        self._lm_head, self._steps, self._metrics = lm_head, steps, metrics
        self._token_requests = TokenRequests(head.vocab.device)
        self._left_out = LeftOut(head.vocab.device)
        self._likeliest: Tensor | None = None
        self._opted_out: set[Hashable] = set()
        self._drafts = False
        then = _AFTER_A_FAILURE + ("" if choice.allowed else _OF_ONE_CAPTURE)
        alone = steps[0].module.tp_size == 1
        self.guard = Guard(logger, alone=alone, then=then, fall_back=choice.fail)

    def leaves_to_vllm(self) -> bool:
        """Return whether vLLM's own LM head drafts this step. May be captured."""
        self._drafts |= self.choice.dense  # vLLM came to the head in this case, too
        return self.choice.dense

    def draft(self, hidden: Tensor, request_index: Tensor | None = None, step: int = 0) -> Tensor:
        """Return the draft's tokens int64 [N] for its hidden states [N, H]. May be captured.

        Args:
            hidden: the draft model's output.
            request_index: int32 or int64 [N], each row's request, -1 for padding; unused if all
                requests share a vocabulary.
            step: index of the draft's step, see :meth:`DraftLMHead.handed`.

        Raises:
            UnsupportedError: the model calls another LM head than the attached one.
        """
        self._drafts = True
        used = self._steps[step]
        handed = self._lm_head.input_of(hidden, used.module, step)
        return used.head.argmax(handed, None if self.head.shared else request_index)

    def draw(
        self, sample: Callable[[], Any], request_index: Tensor | None = None, step: int = 0
    ) -> Any:
        """Return the tokens that vLLM draws from the logits of the active tokens. May be captured.

        Inactive tokens have -inf, also in the logits that vLLM keeps for its rejection sampler, so
        the verified text has the target's law.

        Args:
            sample: vLLM's own draft step.
            request_index, step: as for :meth:`draft`.

        Raises:
            UnsupportedError: the model calls another LM head than the attached one.
        """
        self._drafts = True
        groups, used = None if self.head.shared else request_index, self._steps[step]
        with self._lm_head.replaced(
            used.module, lambda hidden: used.head.row_logits(hidden, groups)
        ):
            return sample()

    def join(self, key: Hashable, name: str, sampling_params: Any) -> bool:
        """Return whether a request that joins has opted out, and remember it.

        Args:
            key: what :meth:`opted_out_of` knows the request by; an earlier request may have had it.
            name: the request's name, for the log.
            sampling_params: vLLM's SamplingParams; None has no arguments.
        """
        self.leave(key)
        if has_opted_out(getattr(sampling_params, "extra_args", None), name, logger):
            self._opted_out.add(key)
        return key in self._opted_out

    def leave(self, key: Hashable) -> None:
        """Forget a request that has ended."""
        self._opted_out.discard(key)

    def opted_out_of(self, keys: Sequence[Hashable]) -> list[bool] | None:
        """Return which requests have opted out; None if none has."""
        if self._opted_out.isdisjoint(keys):
            return None
        return [key in self._opted_out for key in keys]

    def begin(self, requests: Sequence[int], prompts: Sequence[Tensor]) -> None:
        """Begin new requests; see :meth:`EngineHead.begin`.

        Args:
            requests: number of each new request.
            prompts: each request's tokens, on any device.
        """
        self.head.begin(requests, prompts)

    def check_use(self) -> None:
        """Check that the drafts came from this drafter. Call when the target verifies drafts.

        Raises:
            UnsupportedError: vLLM drafted without calling :meth:`draft`.
        """
        if not self._drafts:
            where = "vllm: the first drafts"
            raise UnsupportedError(where, "drafts by the attached LM head", "drafts by another way")

    def keep(self, logits: Tensor) -> None:
        """Keep the target's likeliest tokens of this step until :meth:`observe`.

        Call before the sampler, which may write into the logits. Without `target_top_k` it does
        nothing.

        Args:
            logits: [R, V], the target's logits of the verified rows.
        """
        if self.head.settings.target_top_k:
            self._likeliest = self.head.top_target_tokens(logits)

    def observe(
        self,
        sampled: Tensor,
        requests: Sequence[int],
        lengths: Tensor | None = None,
        verified_requests: Sequence[int] | None = None,
        *,
        opted_out: Sequence[bool] | None = None,
        verified_rows: Sequence[int] | None = None,
    ) -> None:
        """Observe a step of the target, and choose the head of the draft's next one.

        Call eagerly, before that step. Never waits for the device.

        Args:
            sampled: [B, n], the tokens that continue each text, then -1 or what `lengths` excludes.
            requests: B numbers, the requests of the texts.
            lengths: [B], the number of tokens that continue each text.
            verified_requests: the requests of the logits' rows given to :meth:`keep`; unused if all
                requests share a vocabulary.
            opted_out: B flags of requests that have opted out; None: none has.
            verified_rows: B numbers, how many of these logits' rows each request has; None: as many
                each. Unused if no request has opted out.

        Raises:
            UnsupportedError: :meth:`keep` was not called in this step.
        """
        head = self.head
        likeliest, self._likeliest = self._likeliest, None
        if likeliest is None and head.settings.target_top_k:
            raise UnsupportedError(
                "vllm: the target's sampler", "a call of it before drafting", "none"
            )
        token_requests = None
        if not head.shared or head.learning is not None:
            parts = [(requests, sampled.size(1))]
            if likeliest is not None:
                rows, count = likeliest.shape
                owners = [-1] * rows if head.shared else verified_requests
                assert owners is not None
                parts.insert(0, (owners, count))
            token_requests = self._token_requests.of(*parts)
        if opted_out is not None:
            sampled, lengths = self._left_out.take(
                sampled, opted_out, lengths, likeliest, verified_rows
            )
        head.observe(sampled, token_requests, lengths=lengths, candidates=likeliest)
        self.choice.step(len(requests), opted_out is not None)
        self._metrics.tick()

    def reset(self) -> None:
        """Reset the vocabularies, the totals and the kept tokens."""
        self._likeliest = None
        self.head.reset()
        self.choice.reset()
        self._metrics.reset()

    def reload(self) -> None:
        """Update the head after the draft's weights changed in place.

        Raises:
            UnsupportedError: the weights lie at another address now.
        """
        for used in self._steps:
            if used.rows.moved():
                raise UnsupportedError(
                    "vllm: reload_weights", "the draft's LM head at its old address", "other"
                )
            used.rows.refresh()
        self.head.reload()

    def stats(self, wait: bool = True) -> dict[str, Any] | None:
        """Return the newest totals; see :meth:`Metrics.newest`."""
        return self._metrics.newest(wait)
