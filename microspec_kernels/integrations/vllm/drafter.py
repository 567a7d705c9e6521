"""A draft model of vLLM with its LM head over an active vocabulary, for both model runners."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from microspec_kernels.integrations.engine import EngineHead, Refused

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
    """Takes what the runner's seams see to the draft's :class:`EngineHead`.

    Groups are the runner's slots of requests, int32 or int64, -1 for padding; with one vocabulary
    for all requests they are not looked at.

    Args:
        lm_head: of the draft model. module, weight: vLLM's layer, and its rows that the head reads.
        head: made over that weight.
    """

    def __init__(
        self, lm_head: DraftLMHead, module: Any, weight: Tensor, head: EngineHead, metrics: Metrics
    ) -> None:
        self.head = head
        self._lm_head, self._module, self._weight, self._metrics = lm_head, module, weight, metrics
        self._shared = head.vocab.groups == 1
        self._likeliest: tuple[Tensor, Tensor] | None = None

    def draft(self, hidden: Tensor, groups: Tensor) -> Tensor:
        """The draft's tokens int64 [N] for its hidden states [N, H]; may be captured."""
        handed = self._lm_head.handed(hidden)
        if handed.lm_head is not self._module:
            other = type(handed.lm_head).__name__
            raise Refused("vllm: the draft's LM head", "the one that was attached to", other)
        return self.head.argmax(handed.hidden, None if self._shared else groups)

    def begin(self, slots: Sequence[int], prefixes: Sequence[Sequence[int]]) -> None:
        """Requests join in these slots: other ones than before.

        prefixes: the tokens of each whose keys and values are cached, so that no step sees them.
        """
        device = self._weight.device
        if not self._shared:
            self.head.begin(_to(device, slots))
        if any(prefixes):
            lengths = [len(prefix) for prefix in prefixes]
            groups = [
                slot for slot, length in zip(slots, lengths, strict=True) for _ in range(length)
            ]
            tokens = [token for prefix in prefixes for token in prefix]
            self._observe(_to(device, tokens), _to(device, groups))

    def keep(self, logits: Tensor, groups: Tensor) -> None:
        """The target's logits [R, V] of this step's verified rows: at once, since samplers may
        write into them."""
        k = self.head.settings.top_k
        best = logits.argmax(-1, keepdim=True) if k == 1 else logits.topk(k).indices.flip(1)
        self._likeliest = best, groups

    def observe(
        self,
        text: Tensor,
        text_groups: Tensor,
        sampled: Tensor,
        sampled_groups: Tensor,
        drafted: Tensor,
    ) -> None:
        """After a step of the target, before the draft's next; eager, nothing waits.

        Args:
            text: [N] tokens that the target was run over, drafts among them; text_groups [N].
            sampled: [B, n] tokens by which each text went on, -1 behind them; sampled_groups [B].
            drafted: bool [B], texts for which there were drafts.

        Raises:
            Refused: the target's logits of this step were not seen.
        """
        if self._likeliest is None:
            raise Refused("vllm: the target's sampler", "a call of it before drafting", "none")
        (likeliest, rows), self._likeliest = self._likeliest, None
        of_sampled = sampled_groups.repeat_interleave(sampled.size(1))
        judged = sampled.masked_fill(~drafted[:, None], -1).flatten()
        self.head.judge(judged, None if self._shared else of_sampled)
        tokens = torch.cat((text, likeliest.flatten(), sampled.flatten()))
        of_likeliest = rows.repeat_interleave(likeliest.size(1))
        self._observe(tokens, torch.cat((text_groups, of_likeliest, of_sampled)))
        self._metrics.tick()

    def _observe(self, tokens: Tensor, groups: Tensor) -> None:
        self.head.observe(tokens, None if self._shared else groups)

    def restart(self) -> None:
        """Forget everything seen so far."""
        self._likeliest = None
        self.head.restart()

    def reload(self) -> None:
        """The draft's weights have changed.

        Raises:
            Refused: they lie elsewhere now.
        """
        if self._module.weight.data_ptr() != self._weight.data_ptr():
            raise Refused("vllm: reload_weights", "the draft's LM head at its old address", "other")
        self.head.reload()

    def figures(self) -> dict[str, Any]:
        """The newest ones; waits for the device."""
        return self._metrics.newest()


def _to(device: torch.device, values: Sequence[int]) -> Tensor:
    """int64 [n] on the device, which is not waited for."""
    tensor = torch.tensor(values, dtype=torch.int64, pin_memory=device.type == "cuda")
    return tensor.to(device, non_blocking=True)
