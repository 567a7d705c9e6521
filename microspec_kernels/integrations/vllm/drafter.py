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

    Slots are where the runner keeps a request as long as it runs: int32 or int64, -1 for padding.
    They need not be given where one vocabulary serves all requests.

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

    def draft(self, hidden: Tensor, slots: Tensor | None = None) -> Tensor:
        """The draft's tokens int64 [N] for its hidden states [N, H]; may be captured."""
        handed = self._lm_head.handed(hidden)
        if handed.lm_head is not self._module:
            other = type(handed.lm_head).__name__
            raise UnsupportedError(
                "vllm: the draft's LM head", "the one that was attached to", other
            )
        return self.head.argmax(handed.hidden, None if self._shared else slots)

    def begin(self, slots: Sequence[int], prefixes: Sequence[Sequence[int]]) -> None:
        """Requests join in these slots: other ones than before.

        prefixes: the tokens of each whose keys and values are cached, so that no step sees them.
        """
        device = self._weight.device
        if not self._shared:
            self.head.reset(_to(device, slots))
        if any(prefixes):
            lengths = [len(prefix) for prefix in prefixes]
            groups = [
                slot for slot, length in zip(slots, lengths, strict=True) for _ in range(length)
            ]
            tokens = [token for prefix in prefixes for token in prefix]
            self.head.observe(_to(device, tokens), None if self._shared else _to(device, groups))

    def keep(self, logits: Tensor, slots: Tensor | None = None) -> None:
        """The target's logits [R, V] of this step's verified rows: at once, since samplers may
        write into them."""
        self._likeliest = self.head.top_target_tokens(logits), slots

    def observe(
        self,
        text: Tensor,
        sampled: Tensor,
        drafted: Tensor,
        slots: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> None:
        """After a step of the target, before the draft's next; eager, nothing waits.

        Args:
            text: [N] tokens that the target was run over, drafts among them.
            sampled: [B, n] tokens by which each text went on, -1 behind them.
            drafted: bool [B], texts for which there were drafts.
            slots, lengths: [B], each text's slot and its part of N.

        Raises:
            UnsupportedError: the target's logits of this step were not seen.
        """
        if self._likeliest is None:
            raise UnsupportedError(
                "vllm: the target's sampler", "a call of it before drafting", "none"
            )
        (likeliest, row_slots), self._likeliest = self._likeliest, None
        tokens = torch.cat((text, likeliest.flatten(), sampled.flatten()))
        groups = groups_of_sampled = None
        if not self._shared:
            assert slots is not None and lengths is not None and row_slots is not None
            groups_of_sampled = slots.repeat_interleave(sampled.size(1))
            groups_of_text = slots.repeat_interleave(lengths, output_size=len(text))
            groups_of_likeliest = row_slots.repeat_interleave(likeliest.size(1))
            groups = torch.cat((groups_of_text, groups_of_likeliest, groups_of_sampled))
        judged = sampled.masked_fill(~drafted[:, None], -1).flatten()
        self.head.count_coverage(judged, groups_of_sampled)
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
