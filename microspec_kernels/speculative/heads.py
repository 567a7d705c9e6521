"""Three ways to rank the draft's next tokens: over all, a fixed part or an active part of V."""

from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from microspec_kernels import ActiveVocab, SparseHead

HeadName = Literal["dense", "static", "sparse"]


class Head(Protocol):
    """A draft's LM head.

    `follows` says whether it learns from what the target shows; where it does not, the loop does
    not gather that.
    """

    follows: bool

    def topk(self, hidden: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Of features [M, D]: log-probabilities fp32 [M, <= k], falling, and token ids int64.

        Probabilities are over the tokens that this head knows. Where a row has fewer than k, the
        result is narrower or the rest is (-inf, -1).
        """
        ...

    def observe(self, tokens: Tensor) -> None:
        """Learn tokens int64 [N], the newest last."""
        ...

    def contains(self, tokens: Tensor) -> Tensor:
        """Which of tokens int64 [N] it can propose now: bool [N]."""
        ...

    def active(self) -> int:
        """How many tokens it can propose now."""
        ...


class Dense:
    """The whole LM head: weight [V, D], bias [V] or None."""

    follows = False

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight, bias

    def topk(self, hidden: Tensor, k: int) -> tuple[Tensor, Tensor]:
        logits = F.linear(hidden, self.weight, self.bias)
        best = logits.float().log_softmax(-1).topk(min(k, len(self.weight)))
        return best.values, best.indices

    def observe(self, tokens: Tensor) -> None:
        """Nothing: it knows every token."""

    def contains(self, tokens: Tensor) -> Tensor:
        return torch.ones_like(tokens, dtype=torch.bool)

    def active(self) -> int:
        return len(self.weight)


class Static(Dense):
    """The rows of `ids` int64 [S] alone, as FR-Spec (arXiv 2502.14856) takes the most frequent."""

    def __init__(self, weight: Tensor, bias: Tensor | None, ids: Tensor) -> None:
        super().__init__(weight[ids], None if bias is None else bias[ids])
        self.ids = ids
        self.known = torch.zeros(len(weight), dtype=torch.bool, device=weight.device)
        self.known[ids] = True

    def topk(self, hidden: Tensor, k: int) -> tuple[Tensor, Tensor]:
        log_probs, rows = super().topk(hidden, k)
        return log_probs, self.ids[rows]

    def contains(self, tokens: Tensor) -> Tensor:
        return self.known[tokens]


class Sparse:
    """An active vocabulary that follows the text and the target (arXiv 2605.26444)."""

    follows = True

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        vocab: ActiveVocab,
        mode: Literal["indexed", "packed"] = "indexed",
    ) -> None:
        self.vocab = vocab
        self.head = SparseHead(weight, vocab, mode=mode, bias=bias)

    def topk(self, hidden: Tensor, k: int) -> tuple[Tensor, Tensor]:
        logits, tokens, logsumexp = self.head(hidden, k)
        return logits - logsumexp[:, None], tokens

    def observe(self, tokens: Tensor) -> None:
        self.head.observe(tokens)

    def contains(self, tokens: Tensor) -> Tensor:
        return self.vocab.contains(tokens)

    def active(self) -> int:
        return int(self.vocab.size.sum())


def make_head(
    name: HeadName,
    weight: Tensor,
    bias: Tensor | None,
    capacity: int,
    frequency: Tensor | None,
    pinned: int | None,
    mode: Literal["indexed", "packed"],
) -> Head:
    """The head called `name`; the arguments are those of `generate`."""
    if name == "dense":
        return Dense(weight, bias)
    device = weight.device
    capacity = min(capacity, len(weight))
    ranked = None if frequency is None else frequency.to(device=device, dtype=torch.int64)
    if name == "static":
        if ranked is None:
            raise ValueError(
                "generate: frequency: head='static' takes token ids by falling frequency, got None"
            )
        return Static(weight, bias, ranked[:capacity])
    if name != "sparse":
        raise ValueError(f"generate: head: expected 'dense', 'static' or 'sparse', got {name!r}")
    if pinned is None:
        pinned = 0 if ranked is None else capacity // 3
    if pinned and ranked is None:
        raise ValueError(f"generate: frequency: pinned={pinned} takes token ids, got None")
    floor = None if ranked is None or pinned == 0 else ranked[:pinned]
    return Sparse(
        weight, bias, ActiveVocab(len(weight), capacity, pinned=floor, device=device), mode
    )
