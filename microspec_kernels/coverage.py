# SPDX-License-Identifier: Apache-2.0
"""Count on the device how much of the target's text the draft could have proposed."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ._group_numbers import group_numbers
from ._host_copy import HostCopy
from .vocab import ActiveVocab


def hits_and_misses(
    vocab: ActiveVocab,
    tokens: Tensor,
    *,
    token_groups: Tensor | None = None,
    counted: Tensor | None = None,
) -> Tensor:
    """Tell which tokens are active now, and which are not. Reads nothing back to the host.

    Args:
        vocab: the active vocabulary.
        tokens: int32 or int64 [G, N], or [N] if G = 1 or with ``token_groups``.
        token_groups: int32 or int64 [N], the group of each token; outside [0, G): ignore the token.
        counted: bool, shape of ``tokens``: which tokens count. Default: those in [0, V).

    Returns:
        bool [2, ...] with the shape of ``tokens``: counted and active; counted and not active.

    Raises:
        TypeError: ``tokens`` or ``token_groups`` of another dtype.
    """
    active = vocab.contains(tokens, token_groups=token_groups)
    if counted is None:
        counted = (tokens >= 0) & (tokens < vocab.vocab_size)
    if token_groups is not None:
        counted = counted & (token_groups >= 0) & (token_groups < vocab.num_groups)
    return torch.stack((active & counted, ~active & counted))


class Coverage:
    """Counters of the hits and misses of an active vocabulary, on its device.

    :meth:`count` and :meth:`fall_back` read nothing back to the host and can be captured in a CUDA
    graph. The counts are sums of integers, so every run gives the same ones. A caller can react to
    low coverage in two ways, neither of which waits for the device. Inside the graph, keep a larger
    vocabulary beside the small one; its rows are read only while the small one covers too little:

        small, large = ActiveVocab(vocab_size, 3072), ActiveVocab(vocab_size, 16384)
        coverage = Coverage(small)
        for tokens in steps:  # one captured graph serves them all
            ids = coverage.fall_back(large, below=0.9)
            draft(lambda hidden: sparse_head(hidden, lm_head, ids, k=10))
            coverage.count(accepted)  # before the vocabulary learns them
            small.update(tokens)
            large.update(tokens)

    On the host, choose between two captured graphs, for example a dense and a sparse one:

        recent = coverage.poll()  # some steps old, or None
        graph = dense if recent is not None and bool((recent < 0.8).any()) else sparse

    Args:
        vocab: the active vocabulary to measure.
        half_life: number of counted tokens of a group after which a token's weight in
            :attr:`recent` has halved.

    Attributes:
        hits: int64 [G], counted tokens that were active, since the start or the last reset.
        misses: int64 [G], counted tokens that were not active.

    Raises:
        ValueError: half_life is not above 0.
    """

    # Inference tensors could not be updated in place outside inference mode.
    @torch.inference_mode(False)
    def __init__(self, vocab: ActiveVocab, *, half_life: float = 256.0) -> None:
        if not half_life > 0:
            raise ValueError(f"Coverage: half_life: expected above 0, got {half_life}")
        self.vocab, self.half_life = vocab, half_life
        num_groups, device = vocab.num_groups, vocab.device
        self.hits = torch.zeros(num_groups, dtype=torch.int64, device=device)
        self.misses = torch.zeros(num_groups, dtype=torch.int64, device=device)
        # Row 0: hits; row 1: hits and misses. Both decay with half_life.
        self._fading = torch.zeros(2, num_groups, dtype=torch.float32, device=device)
        self._host_copy = HostCopy()

    @property
    def share(self) -> Tensor:
        """Share of the counted tokens that were active, fp32 [G] on the device; NaN before any."""
        return self.hits.float() / (self.hits + self.misses).float()

    @property
    def recent(self) -> Tensor:
        """The same share, with older tokens weighted less (`half_life`); fp32 [G]."""
        return self._fading[0] / self._fading[1]

    def count(
        self,
        tokens: Tensor,
        *,
        token_groups: Tensor | None = None,
        counted: Tensor | None = None,
    ) -> None:
        """Count which of the text's next tokens are in the vocabulary now.

        Call this before :meth:`ActiveVocab.update` adds the tokens.

        Args:
            tokens: int32 or int64 [G, N], or [N] if G = 1 or with ``token_groups``. An id outside
                [0, V) is ignored.
            token_groups: int32 or int64 [N], the group of each token; -1 ignores the token.
            counted: bool, shape of ``tokens``: which tokens count. Default: those in [0, V). Where
                a dense head's draft is known, give the tokens that it got accepted: then the share
                is of the only tokens whose absence costs acceptance length.

        Raises:
            TypeError: ``tokens`` or ``token_groups`` of another dtype.
        """
        flags = hits_and_misses(self.vocab, tokens, token_groups=token_groups, counted=counted)
        num_groups = self.vocab.num_groups
        if token_groups is None:
            hits, misses = flags.view(2, num_groups, -1).sum(2)
        else:
            sums = flags.new_zeros(2, num_groups, dtype=torch.int64)
            groups = token_groups.clamp(0, num_groups - 1).long()
            hits, misses = sums.index_add_(1, groups, flags.long())
        count = hits + misses
        self.hits += hits
        self.misses += misses
        self._fading *= torch.exp2(count.float() / -self.half_life)
        self._fading += torch.stack((hits, count))

    def fall_back(self, larger: ActiveVocab, *, below: float) -> Tensor:
        """Choose the ids to draft with: the larger vocabulary's for groups with recent < below.

        :meth:`count` still measures the small vocabulary, so a group returns to it when its
        coverage suffices again. The small vocabulary's ids leave the slots beyond its capacity
        empty; the head reads no row for those. (A slab of these ids gathers all rows again when a
        group switches.)

        Args:
            larger: a vocabulary with as many groups and at least the same capacity.
            below: the coverage below which a group uses ``larger``.

        Returns:
            int32 [G, larger's capacity]; -1 marks an empty slot.

        Raises:
            ValueError: ``larger`` has another number of groups or a smaller capacity.
        """
        small = self.vocab
        room = larger.capacity - small.capacity
        if larger.num_groups != small.num_groups or room < 0:
            raise ValueError(
                f"Coverage: fall_back: larger: expected {small.num_groups} groups of capacity >= "
                f"{small.capacity}, got {larger.num_groups} of {larger.capacity}"
            )
        small_ids = F.pad(small.ids, (0, room), value=-1)
        return torch.where((self.recent < below)[:, None], larger.ids, small_ids)

    def poll(self) -> Tensor | None:
        """Return the newest :attr:`recent` that has reached the host: fp32 [G], None before any.

        The method never waits. It checks whether the copy that an earlier call began has arrived,
        and if so begins the next one. Do not call it during graph capture.
        """
        return self._host_copy.poll(self.recent)

    def reset(self, groups: Tensor | Sequence[int] | None = None) -> None:
        """Set the counts of some groups to zero.

        Args:
            groups: see :meth:`ActiveVocab.reset`, which raises the same errors.
        """
        vocab = self.vocab
        which = group_numbers("Coverage: reset: groups", groups, vocab.num_groups, vocab.device)
        self.hits[which], self.misses[which], self._fading[:, which] = 0, 0, 0.0
