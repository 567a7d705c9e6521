# SPDX-License-Identifier: Apache-2.0
"""A source that predicts from the text itself: the tokens that last followed the same n-gram."""

import torch
from torch import Tensor

from .policy import Source, TargetPass

TOKEN_BITS = 32


class ContextSuccessors:
    """A memory of the token that last followed each n-gram of a text.

    Prompt-lookup decoding (github.com/apoorvumang/prompt-lookup-decoding) drafts in this way. Here
    the memory only decides which tokens to keep active. It selects only tokens of the text. If the
    prompt and the generated tokens are also sources, it therefore matters only after some of them
    have been evicted.

    The state is int64 [V + 1] on the device, a slot per hash of an n-gram. The hash of a single
    token is the token itself. If two n-grams share a slot, the later one replaces the follower of
    the other. One object serves one text at a time.

    Args:
        vocab_size: V, number of tokens of the tokenizer.
        order: number of tokens in an n-gram.
        ahead: number of tokens to look ahead; each look-up continues from the token before.
        device: device of the state.

    Raises:
        ValueError: a number below 1.
    """

    # Inference tensors could not be updated in place outside inference mode.
    @torch.inference_mode(False)
    def __init__(
        self,
        vocab_size: int,
        *,
        order: int = 1,
        ahead: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        for name, value in (("vocab_size", vocab_size), ("order", order), ("ahead", ahead)):
            if value < 1:
                raise ValueError(f"ContextSuccessors: {name}: expected at least 1, got {value}")
        self.vocab_size, self.order, self.ahead = vocab_size, order, ahead
        # An entry is (time << TOKEN_BITS) | follower, so the latest entry is the largest. The last
        # slot is for windows that are not n-grams, and its entry stays -1.
        self._followed = torch.empty(vocab_size + 1, dtype=torch.int64, device=device)
        self._newest = torch.empty(order, dtype=torch.int64, device=device)
        self._clock = torch.empty((), dtype=torch.int64, device=device)
        self.reset()

    @property
    def sources(self) -> tuple[Source, Source]:
        """Two sources, for prompts and steps; each selects `ahead` tokens at the last row."""
        name = f"context{self.order}x{self.ahead}"
        return (
            Source(name, "prompt", self._after_prompt, reset=self.reset),
            Source(name, "step", self._after_step, reset=self.reset),
        )

    def reset(self) -> None:
        """Forget the text."""
        self._followed.fill_(-1)
        self._newest.fill_(-1)
        self._clock.zero_()

    def _after_prompt(self, target_pass: TargetPass) -> Tensor:
        self._learn(torch.cat((target_pass.tokens, target_pass.chosen[-1:])))
        return self._next(target_pass)

    def _after_step(self, target_pass: TargetPass) -> Tensor:
        self._learn(target_pass.chosen)
        return self._next(target_pass)

    def _learn(self, text: Tensor) -> None:
        """Append the tokens int64 [m] that are not -1, and record the n-grams' followers."""
        first = (text < 0).to(torch.uint8).argsort(stable=True)
        text = torch.cat((self._newest, text[first]))
        ngrams = text.unfold(0, self.order, 1)
        followers = text[self.order :]
        slots = torch.where(followers >= 0, self._slots(ngrams[:-1]), self.vocab_size)
        times = self._clock + torch.arange(len(followers), device=text.device)
        entries = torch.where(slots < self.vocab_size, (times << TOKEN_BITS) | followers, -1)
        self._followed.scatter_reduce_(0, slots, entries, "amax")
        self._newest.copy_(ngrams.index_select(0, (followers >= 0).sum()[None])[0])
        self._clock += len(followers)

    def _next(self, target_pass: TargetPass) -> Tensor:
        ngram, ahead = self._newest, []
        for _ in range(self.ahead):
            followed = self._followed.index_select(0, self._slots(ngram[None]))
            token = torch.where(followed >= 0, followed & ((1 << TOKEN_BITS) - 1), -1)
            ngram = torch.cat((ngram[1:], token))
            ahead.append(token)
        taken = target_pass.tokens.new_full((len(target_pass.tokens), self.ahead), -1)
        taken[-1:] = torch.cat(ahead[::-1])  # the nearest token comes last, so it is the newest
        return taken

    def _slots(self, ngrams: Tensor) -> Tensor:
        """Return the slots int64 [m] of n-grams int64 [m, order]: slot V for those with a -1."""
        slot = torch.zeros_like(ngrams[:, 0])
        for column in ngrams.unbind(1):
            slot = (slot * 1000003 + column) % self.vocab_size
        return torch.where((ngrams >= 0).all(1), slot, self.vocab_size)
