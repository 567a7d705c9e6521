"""What followed the newest tokens when they stood earlier in the same text."""

import torch
from torch import Tensor

from .policy import Source, TargetPass

TOKEN_BITS = 32


class ContextSuccessors:
    """Remembers, for each n-gram of a text, the token that followed it last.

    As prompt-lookup decoding drafts (github.com/apoorvumang/prompt-lookup-decoding), here only to
    say which tokens to keep active. All that it names has been in the text: with the prompt and
    the generated tokens among the sources it matters only once some of them have been evicted.

    The state is int64 [V + 1] on the device, a slot per hash of an n-gram (for single tokens the
    token itself; two n-grams that share a slot cost each other a guess). One object serves one
    text at a time.

    Args:
        vocab_size: V, tokens of the tokenizer.
        order: how many tokens an n-gram has.
        ahead: how many tokens to look ahead; each is looked up after the one before.
        device: where the state lives.

    Raises:
        ValueError: a number below 1.
    """

    @torch.inference_mode(False)  # or the text could not be learned outside
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
        # What followed, below the time at which it did, so that the latest is the largest. The
        # last slot stands for what is no n-gram, and stays empty.
        self._followed = torch.empty(vocab_size + 1, dtype=torch.int64, device=device)
        self._newest = torch.empty(order, dtype=torch.int64, device=device)
        self._clock = torch.empty((), dtype=torch.int64, device=device)
        self.reset()

    @property
    def sources(self) -> tuple[Source, Source]:
        """Takes `ahead` tokens a pass, at its last row, of prompts and of steps."""
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
        """Append the tokens int64 [m] to the text, whichever of them are not -1."""
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
            known = self._followed.index_select(0, self._slots(ngram[None]))
            token = torch.where(known >= 0, known & ((1 << TOKEN_BITS) - 1), -1)
            ngram = torch.cat((ngram[1:], token))
            ahead.append(token)
        taken = target_pass.tokens.new_full((len(target_pass.tokens), self.ahead), -1)
        taken[-1:] = torch.cat(ahead[::-1])  # the nearest last: the newest
        return taken

    def _slots(self, ngrams: Tensor) -> Tensor:
        """Where n-grams int64 [m, order] are kept; what has a -1 in it, in the last slot."""
        slot = torch.zeros_like(ngrams[:, 0])
        for column in ngrams.unbind(1):
            slot = (slot * 1000003 + column) % self.vocab_size
        return torch.where((ngrams >= 0).all(1), slot, self.vocab_size)
