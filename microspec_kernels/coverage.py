"""How much of the target's text the draft could have proposed, counted where the text is."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ._group_ids import group_ids
from ._host_copy import HostCopy
from .vocab import ActiveVocab


class Coverage:
    """Hits and misses of an active vocabulary, on its device.

    :meth:`count` and :meth:`fall_back` read nothing back to the host and can be captured in a CUDA
    graph; counts are sums of integers, so the same on every run. Two ways to act on a fall, both
    without waiting for the device. In the graph, a larger vocabulary beside the small one, whose
    rows are read only while the small one covers too little:

        small, large = ActiveVocab(vocab_size, 3072), ActiveVocab(vocab_size, 16384)
        coverage = Coverage(small)
        for tokens in steps:  # one captured graph serves them all
            ids = coverage.fall_back(large, below=0.9)
            draft(lambda hidden: sparse_head(hidden, lm_head, ids, k=10))
            coverage.count(accepted)  # before the vocabulary learns them
            small.update(tokens)
            large.update(tokens)

    On the host, between two captured graphs, the dense head's among them:

        recent = coverage.poll()  # some steps old, or None
        graph = dense if recent is not None and bool((recent < 0.8).any()) else sparse

    Args:
        vocab: whose coverage it is.
        half_life: judged tokens of a group after which a token counts half in :attr:`recent`.

    Attributes:
        hits, misses: int64 [G], tokens judged since the start.

    Raises:
        ValueError: a half_life that is not above 0.
    """

    @torch.inference_mode(False)  # or the counts could not be updated outside
    def __init__(self, vocab: ActiveVocab, *, half_life: float = 256.0) -> None:
        if not half_life > 0:
            raise ValueError(f"Coverage: half_life: expected above 0, got {half_life}")
        self.vocab, self.half_life = vocab, half_life
        groups, device = vocab.groups, vocab.device
        self.hits = torch.zeros(groups, dtype=torch.int64, device=device)
        self.misses = torch.zeros(groups, dtype=torch.int64, device=device)
        # Hits and tokens, each fading.
        self._fading = torch.zeros(2, groups, dtype=torch.float32, device=device)
        self._each_group = torch.arange(groups, device=device)[:, None]
        self._host_copy = HostCopy()

    @property
    def share(self) -> Tensor:
        """Share of the judged tokens that were active, fp32 [G] on the device; NaN before any."""
        return self.hits.float() / (self.hits + self.misses).float()

    @property
    def recent(self) -> Tensor:
        """The same with older tokens counting less (`half_life`)."""
        return self._fading[0] / self._fading[1]

    def count(self, tokens: Tensor, *, token_groups: Tensor | None = None) -> None:
        """Judge the tokens by which the text went on, against the vocabulary as it is now.

        Call it before :meth:`ActiveVocab.update` lets them in.

        Args:
            tokens: int32 or int64 [G, N], or [N] when G = 1 or with ``token_groups``; what
                is no id in [0, V) is ignored.
            token_groups: int32 or int64 [N], each token's group, -1 to ignore it.
        """
        known = self.vocab.contains(tokens, token_groups=token_groups)
        judged = (tokens >= 0) & (tokens < self.vocab.vocab_size)
        if token_groups is None:
            known, judged = (flags.reshape(len(self.hits), -1) for flags in (known, judged))
        else:
            known, judged = (
                flags & (token_groups == self._each_group) for flags in (known, judged)
            )
        hits, count = known.sum(1), judged.sum(1)
        self.hits += hits
        self.misses += count - hits
        self._fading *= torch.exp2(count.float() / -self.half_life)
        self._fading += torch.stack((hits, count))

    def fall_back(self, larger: ActiveVocab, *, below: float) -> Tensor:
        """The ids to draft with: the vocabulary's own, or the larger one's where recent < below.

        The small one goes on being judged, so a group comes back when it would cover enough again.
        Own ids leave the slots beyond their capacity empty: the head reads no row for those. (A
        slab of these ids is gathered anew when a group changes sides.)

        Returns:
            int32 [G, larger's capacity], -1 is an empty slot.

        Raises:
            ValueError: a vocabulary of other groups, or a smaller one.
        """
        room = larger.capacity - self.vocab.capacity
        if larger.groups != self.vocab.groups or room < 0:
            raise ValueError(
                f"Coverage: fall_back: larger: expected {self.vocab.groups} groups of capacity >= "
                f"{self.vocab.capacity}, got {larger.groups} of {larger.capacity}"
            )
        own = F.pad(self.vocab.ids, (0, room), value=-1)
        return torch.where((self.recent < below)[:, None], larger.ids, own)

    def poll(self) -> Tensor | None:
        """The newest :attr:`recent` that has reached the host, fp32 [G]; None before the first.

        Never waits: it looks whether the copy that the last call began has arrived, and begins the
        next. Not to be captured.
        """
        return self._host_copy.poll(self.recent)

    def reset(self, groups: Tensor | Sequence[int] | None = None) -> None:
        """Count anew in some groups.

        Args:
            groups: as of :meth:`ActiveVocab.reset`, with its errors.
        """
        vocab = self.vocab
        which = group_ids("Coverage: reset: groups", groups, vocab.groups, vocab.device)
        self.hits[which], self.misses[which], self._fading[:, which] = 0, 0, 0.0
