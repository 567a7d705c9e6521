# SPDX-License-Identifier: Apache-2.0
"""`EngineHead`: the draft's LM head over an active vocabulary, for plugins and custom engines."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from microspec_kernels._checks import FOUR_BIT
from microspec_kernels._host_copy import HostCopy
from microspec_kernels._linear import broken_rows, log_broken, plain
from microspec_kernels.coverage import hits_and_misses
from microspec_kernels.head import SparseHead
from microspec_kernels.parallel import all_gather_rows
from microspec_kernels.vocab import ActiveVocab

from .settings import Settings
from .token_map import TokenMap


@dataclass(frozen=True)
class Shard:
    """The rows of the draft's LM head that this rank of a tensor-parallel group holds.

    Attributes:
        total_rows: rows on all ranks together.
        start: index of the first row on this rank.
        process_group: the ranks.
    """

    total_rows: int
    start: int
    process_group: "torch.distributed.ProcessGroup"


class EngineStats(NamedTuple):
    """Totals since the start over all vocabularies, and the number of tokens active now.

    Attributes:
        hits: counted tokens that were active, see :meth:`EngineHead.count_coverage`.
        misses: counted tokens that were not active.
        rows_activated: rows of the LM head that became active.
        active: tokens that are active now.
    """

    hits: int
    misses: int
    rows_activated: int
    active: int

    @property
    def coverage(self) -> float | None:
        """hits / (hits + misses); None before any token was counted."""
        counted = self.hits + self.misses
        return self.hits / counted if counted else None


class EngineHead:
    """Attach once, observe in eager code, call in a captured graph.

        settings = Settings(frequent_tokens_file="frequent.npy")
        head = EngineHead(draft.lm_head.weight, settings)  # before capture
        head.observe(prompt)
        tokens = head.argmax(hidden)              # in the graph of the draft's steps
        likeliest = head.top_target_tokens(target_logits).flatten()
        head.count_coverage(accepted)             # optional, before observe
        head.observe(torch.cat((tokens, likeliest, accepted)))  # between two replays

    All state lies at fixed addresses on the weight's device. Arguments and results are the target's
    token ids; the head maps them to rows of the draft's LM head internally, because an EAGLE-3
    draft may have fewer rows than the target has tokens. The constructor finds tokens whose rows
    (of quantised rows, whose scales) hold NaN or infinity, logs them and never proposes them.

    Args:
        weight: [R, D], the draft's LM head without the padding rows at the end of V; with
            `shard`, the rows of this rank. bf16, fp16 or fp32; int8, float8_e4m3fn or 4-bit rows
            (uint8 or float4_e2m1fn_x2 [R, D/2]) with `weight_scale`.
        settings: see :class:`Settings`.
        num_groups: number of vocabularies: 1 if all requests share one, else the most requests that
            may run at once. Plugins choose it by `Settings.vocabulary`.
        target_vocab_size: number of the target's tokens; default: the number of rows.
        row_tokens: int64 [R], the target's token of each row of the whole head; None: row i is
            token i.
        weight_scale: fp32 [R] of a quantised weight; bf16 [R, D/32] or float8_e4m3fn [R, D/16] of
            4-bit rows. Settings then name no slab_dtype, because quantised rows are only copied.
        bias: [R].
        logit_scale, softcap: see :func:`~microspec_kernels.sparse_head`.
        shard: this rank's part if ranks share the head. The constructor and the calls are then
            collectives, and each rank must observe the same tokens.

    Raises:
        ValueError, TypeError, OSError: as :class:`SparseHead` (for example, the weight is not a
            plain tensor) and :meth:`Settings.read_frequent_tokens`.
        ValueError: the file of frequent tokens has no token with a row in the draft, or
            target_top_k exceeds the number of the target's tokens, or weight_scale is not one of
            R rows.
    """

    @torch.inference_mode(False)  # a tensor made in inference mode cannot be updated outside it
    def __init__(
        self,
        weight: Tensor,
        settings: Settings,
        *,
        num_groups: int = 1,
        target_vocab_size: int | None = None,
        row_tokens: Tensor | None = None,
        weight_scale: Tensor | None = None,
        bias: Tensor | None = None,
        logit_scale: float = 1.0,
        softcap: float = 0.0,
        shard: Shard | None = None,
    ) -> None:
        device = plain(weight, "EngineHead: weight").device
        lm_head_rows = weight.size(0) if shard is None else shard.total_rows
        if weight_scale is not None and weight_scale.shape[:1] != weight.shape[:1]:
            expected, got = f"shape [{weight.size(0)}, ...]", list(weight_scale.shape)
            raise ValueError(f"EngineHead: weight_scale: expected {expected}, got {got}")
        broken = broken_rows(weight, bias, weight_scale)
        if shard is not None:
            broken = all_gather_rows(
                broken, lm_head_rows, start=shard.start, process_group=shard.process_group
            )
        self.token_map = TokenMap(lm_head_rows, target_vocab_size, row_tokens, device, broken)
        log_broken(self.token_map.to_tokens(broken), "microspec: the draft's LM head")
        if settings.target_top_k > self.token_map.target_vocab_size:
            most = self.token_map.target_vocab_size
            raise ValueError(
                f"microspec: target_top_k: expected at most {most}, got {settings.target_top_k}"
            )
        frequent_tokens = self.token_map.to_rows(
            settings.read_frequent_tokens(self.token_map.target_vocab_size).to(device)
        )
        frequent_tokens = frequent_tokens[frequent_tokens >= 0]
        if settings.frequent_tokens_file is not None and len(frequent_tokens) == 0:
            expected = "at least one token that the draft has a row for"
            raise ValueError(f"microspec: frequent_tokens_file: expected {expected}, got none")
        self.settings, self._weight = settings, weight.detach()
        self.vocab = ActiveVocab(
            lm_head_rows,
            min(settings.capacity, lm_head_rows),
            num_groups=num_groups,
            frequent_tokens=frequent_tokens,
            device=device,
        )
        self.head = SparseHead(
            weight,
            self.vocab,
            mode=settings.mode,
            weight_scale=weight_scale,
            slab_dtype=settings.slab_torch_dtype,
            # observe waits for the gather, so a second buffer would only add another gather.
            buffers=1 if settings.mode == "packed" else None,
            bias=bias,
            logit_scale=logit_scale,
            softcap=softcap,
            process_group=None if shard is None else shard.process_group,
            start=0 if shard is None else shard.start,
        )
        self._counted = torch.zeros(2, dtype=torch.int64, device=device)  # hits, misses
        self._activated = torch.zeros(1, dtype=torch.int64, device=device)
        self._host_copy = HostCopy()

    @property
    def capacity(self) -> int:
        """K: the setting, or the number of rows if the head has fewer."""
        return self.vocab.capacity

    def __str__(self) -> str:
        """Describe the head in one line, for an engine's log."""
        settings, weight, count = self.settings, self._weight, self.vocab.num_groups
        dim = weight.size(1) * (2 if weight.dtype in FOUR_BIT else 1)
        return (
            f"LM head [{self.vocab.vocab_size}, {dim}] "
            f"{str(weight.dtype).removeprefix('torch.')}, K = {self.capacity}, "
            f"{count} vocabular{'y' if count == 1 else 'ies'}, "
            f"target's top-{settings.target_top_k}, "
            f"mode {' '.join(filter(None, (settings.mode, settings.slab_dtype)))}"
        )

    def observe(self, tokens: Tensor, token_groups: Tensor | None = None) -> None:
        """Make the target's tokens active before the draft's next step. Call outside capture.

        Args:
            tokens: int32 or int64 [N], newest last. -1 and tokens without a row are ignored.
            token_groups: int32 or int64 [N], each token's vocabulary, -1 to ignore the token; None
                with one vocabulary.
        """
        before = self.vocab.ids.clone()
        self.vocab.update(self.token_map.to_rows(tokens), token_groups=token_groups)
        self._activated += (self.vocab.ids != before).sum()
        self._gather()

    def top_target_tokens(self, logits: Tensor) -> Tensor:
        """Return the target's `target_top_k` likeliest tokens of each row, for :meth:`observe`.

        Args:
            logits: [R, V], the target's logits.

        Returns:
            int64 [R, target_top_k], the likeliest last, because :meth:`observe` takes the last as
            the newest.
        """
        if self.settings.target_top_k == 1:
            return logits.max(-1, keepdim=True).indices  # on a CPU a third of argmax's time
        return logits.topk(self.settings.target_top_k).indices.flip(1)

    def count_coverage(self, tokens: Tensor, token_groups: Tensor | None = None) -> None:
        """Count how many of a text's new tokens are active. Call before :meth:`observe`.

        Args:
            tokens, token_groups: as for :meth:`observe`. Tokens without a row count as misses.

        Raises:
            ValueError: token_groups is None although there are several vocabularies.
        """
        if token_groups is None and self.vocab.num_groups > 1:
            expected = f"one per token, because there are {self.vocab.num_groups}"
            where = "microspec: count_coverage: token_groups"
            raise ValueError(f"{where}: expected {expected}, got None")
        flags = hits_and_misses(
            self.vocab,
            self.token_map.to_rows(tokens),
            token_groups=token_groups,
            counted=self.token_map.is_token(tokens),
        )
        self._counted += flags.flatten(1).sum(1)

    def reset(self, groups: Tensor | Sequence[int] | None = None) -> None:
        """Reset vocabularies to the frequent tokens. Call outside capture.

        Do not reset a shared vocabulary for a new request: all requests use it.

        Args:
            groups: integers [n], the vocabularies in which new requests begin. A tensor on the
                weight's device causes no synchronisation. None: all vocabularies and the totals of
                :meth:`stats`.
        """
        if groups is None:
            self.vocab.reset()
            self._counted.zero_()
            self._activated.zero_()
            self._host_copy = HostCopy()  # drop the pending copy: its totals are from before
        elif len(groups):
            self.vocab.reset(groups)
        else:
            return
        self._gather()

    def topk(
        self, hidden: Tensor, k: int, row_groups: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the draft's k best tokens of each row. May be captured.

        Args:
            hidden: [..., D], the input of the LM head.
            row_groups: int32 or int64 [...], each row's vocabulary, -1 for padding; None with one
                vocabulary. Like `hidden`, a buffer at a fixed address if the call is captured: a
                replay reads the values that it holds then.

        Returns:
            logits fp32 [..., k]; the target's token ids int64 [..., k]; logsumexp fp32 [...] over
            the active tokens. Logits are -inf and ids -1 for padding rows and where a vocabulary
            has fewer than k tokens.
        """
        logits, rows, logsumexp = self.head(hidden, k, row_groups)
        return logits, self.token_map.to_tokens(rows), logsumexp

    def argmax(self, hidden: Tensor, row_groups: Tensor | None = None) -> Tensor:
        """Return the draft's best token of each row, int64 [...]. May be captured.

        A row without an active token, as padding is, gets token 0: engines need a valid token id,
        and the target rejects a wrong one.

        Args:
            hidden, row_groups: as for :meth:`topk`.
        """
        return self.topk(hidden, 1, row_groups)[1][..., 0].clamp(min=0)

    def sample(
        self,
        hidden: Tensor,
        temperatures: Tensor,
        seeds: Tensor,
        positions: Tensor,
        row_groups: Tensor | None = None,
        *,
        token_logits: Tensor | None = None,
        logit_rows: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Draw a token of each row from the draft's law, for rejection sampling. May be captured.

        Args:
            hidden, row_groups: as for :meth:`topk`.
            temperatures, seeds, positions, logit_rows: see
                :func:`~microspec_kernels.sparse_sample`.
            token_logits: [.., V], the logits before the temperature, by the target's token; written
                in place.

        Returns:
            the target's token ids int64 [...] and their log-probabilities fp32 [...]. A row without
            an active token, as padding is, gets token 0, as in :meth:`argmax`, and -inf.

        Raises:
            NotImplementedError: ranks share the head.
        """
        tokens, log_probs = self.head.sample(
            hidden,
            temperatures,
            seeds,
            positions,
            row_groups,
            row_tokens=self.token_map.row_tokens,
            token_logits=token_logits,
            logit_rows=logit_rows,
        )
        return tokens.clamp(min=0), log_probs

    def slot_logits(self, hidden: Tensor) -> Tensor:
        """Return a shared vocabulary's logits, for an engine that chooses among the slots itself.

        May be captured.

        Args:
            hidden: [..., D], the input of the LM head.

        Returns:
            fp32 [..., K], one column for each slot, -inf for empty slots.
        """
        return self.head.slot_logits(hidden)[0]

    def slot_tokens(self) -> Tensor:
        """Return the target's token in each slot: int64 [G, K], -1 for empty slots."""
        return self.token_map.to_tokens(self.vocab.ids.long())

    def stats(self) -> EngineStats | None:
        """Return the newest totals on the host; None before the first copy arrives.

        Never waits for the device: on a GPU, each call returns the totals of an earlier call. Call
        outside capture.
        """
        active = self.vocab.size.sum(0, keepdim=True)
        newest = self._host_copy.poll(torch.cat((self._counted, self._activated, active)))
        if newest is None:
            return None
        hits, misses, rows_activated, active_now = newest.tolist()
        return EngineStats(hits, misses, rows_activated, active_now)

    def reload(self) -> None:
        """Gather the slab again after the weight changed in place. Call outside capture."""
        slab = self.head.slab
        if slab is not None:
            slab.invalidate()
            self._gather()

    def _gather(self) -> None:
        slab = self.head.slab
        if slab is not None:
            slab.refresh()
            slab.wait()  # a captured graph cannot wait, so the rows must be in place first
