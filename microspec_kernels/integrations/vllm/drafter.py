"""A draft model of vLLM with its LM head over an active vocabulary, for both model runners."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from microspec_kernels.engine import EngineHead
from microspec_kernels.integrations.hooks import UnsupportedError

from .draft_lm_head import DraftLMHead
from .metrics import Metrics

_ATTRIBUTE = "microspec_drafter"


def drafter_of(holder: Any) -> "Drafter | None":
    """That of one of the engine's objects: a speculator, a sampler, a runner."""
    drafter: Drafter | None = getattr(holder, _ATTRIBUTE, None)
    return drafter


def hold(holder: Any, drafter: "Drafter") -> None:
    """Let one of the engine's objects know its drafter."""
    setattr(holder, _ATTRIBUTE, drafter)


class Drafter:
    """Pass what the runner's hooks receive to the draft's :class:`EngineHead`.

    `request_index` says at which index the runner keeps each request while it runs: int32 or int64,
    -1 for padding. It may be None if one vocabulary serves all requests.

    Args:
        lm_head: of the draft model. module, weight: vLLM's layer, and its rows that the head reads.
        head: made over that weight.
    """

    def __init__(
        self, lm_head: DraftLMHead, module: Any, weight: Tensor, head: EngineHead, metrics: Metrics
    ) -> None:
        self.head = head
        self._lm_head, self._module, self._weight, self._metrics = lm_head, module, weight, metrics
        self._shared = head.settings.vocabulary == "shared"
        self._likeliest: tuple[Tensor, Tensor | None] | None = None

    def draft(self, hidden: Tensor, request_index: Tensor | None = None) -> Tensor:
        """Return the draft's tokens int64 [N] for its hidden states [N, H]. May be captured."""
        handed = self._lm_head.handed(hidden)
        if handed.lm_head is not self._module:
            other = type(handed.lm_head).__name__
            raise UnsupportedError(
                "vllm: the draft's LM head", "the one that was attached to", other
            )
        return self.head.argmax(handed.hidden, None if self._shared else request_index)

    def begin(self, request_index: Sequence[int], prefixes: Sequence[Sequence[int]]) -> None:
        """Begin new requests at these indices.

        prefixes: each request's tokens whose keys and values are cached: no step will run them.
        """
        device = self._weight.device
        if not self._shared:
            self.head.reset(_to(device, request_index))
        if any(prefixes):
            lengths = [len(prefix) for prefix in prefixes]
            pairs = zip(request_index, lengths, strict=True)
            groups = [index for index, length in pairs for _ in range(length)]
            tokens = [token for prefix in prefixes for token in prefix]
            self.head.observe(_to(device, tokens), None if self._shared else _to(device, groups))

    def keep(self, logits: Tensor, request_index: Tensor | None = None) -> None:
        """The target's logits [R, V] of this step's verified rows: at once, since samplers may
        write into them."""
        self._likeliest = self.head.top_target_tokens(logits), request_index

    def observe(
        self,
        text: Tensor,
        sampled: Tensor,
        drafted: Tensor,
        request_index: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> None:
        """After a step of the target, before the draft's next; eager, nothing waits.

        Args:
            text: [N] tokens that the target was run over, drafts among them.
            sampled: [B, n] tokens by which each text went on, -1 behind them.
            drafted: bool [B], texts for which there were drafts.
            request_index, lengths: [B], each text's index and its part of N.

        Raises:
            UnsupportedError: the target's logits of this step were not seen.
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
        """Forget everything seen so far."""
        self._likeliest = None
        self.head.reset()
        self._metrics.reset()

    def reload(self) -> None:
        """The draft's weights have changed.

        Raises:
            UnsupportedError: they lie elsewhere now.
        """
        if self._module.weight.data_ptr() != self._weight.data_ptr():
            raise UnsupportedError(
                "vllm: reload_weights", "the draft's LM head at its old address", "other"
            )
        self.head.reload()

    def stats(self) -> dict[str, Any]:
        """Return the newest totals. Waits for the device."""
        return self._metrics.newest()


def _to(device: torch.device, values: Sequence[int]) -> Tensor:
    """int64 [n] on the device, which is not waited for."""
    tensor = torch.tensor(values, dtype=torch.int64, pin_memory=device.type == "cuda")
    return tensor.to(device, non_blocking=True)
