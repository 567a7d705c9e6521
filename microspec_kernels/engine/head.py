# SPDX-License-Identifier: Apache-2.0
"""`EngineHead`: the draft's LM head over an active vocabulary, for plugins and custom engines."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from microspec_kernels._checks import FOUR_BIT
from microspec_kernels._host_copy import HostCopy
from microspec_kernels._linear import broken_rows, log_broken, plain
from microspec_kernels.head import SparseHead
from microspec_kernels.ops import vocab_observe_
from microspec_kernels.parallel import all_gather_rows
from microspec_kernels.policy import StepCosts
from microspec_kernels.policy.auto_capacity import AutoCapacity
from microspec_kernels.tally import Tally
from microspec_kernels.vocab import ActiveVocab

from .draft_head import DraftHead
from .learning import Learning, prior_rows, tokens_of
from .settings import Settings
from .shard import Shard
from .slots import costs_of_head, may_change, num_slots
from .stats import EngineStats
from .token_map import TokenMap


class EngineHead(DraftHead):
    """Attach once, observe in eager code, call in a captured graph.

        head = EngineHead(draft.lm_head.weight, Settings())  # before capture
        head.begin([0], [prompt])                 # a request begins
        tokens = head.argmax(hidden)              # in the graph of the draft's steps
        head.observe(accepted)                    # what the target wrote, between two replays

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
        num_requests: the most requests that run at once. With one vocabulary and several requests,
            all share it. Default: num_groups.
        prior: the target's token ids, the most frequent first: the order of tokens before anything
            is learned, if settings names no file of frequent tokens.
        tokenizer: the target's tokenizer (see :func:`~.policy.prior_of_tokenizer`), which gives the
            prior if there is no other. What was learned with another one is refused.
        costs: what a step reads, for a capacity of "auto". The head fills in its `shared` and
            `slab_row_bytes`. None: K = 3072 then.
        writes: whether this process may write `Settings.learned_file`: one of the processes that
            begin with the same file. Of the ranks of a shard, only the first writes.
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
            plain tensor), :meth:`Settings.read_frequent_tokens` and :class:`~.policy.LearnedFile`.
        ValueError: the file of frequent tokens has no token with a row in the draft, or
            target_top_k exceeds the number of the target's tokens, or weight_scale is not one of
            R rows, or num_requests fits neither one vocabulary nor one for each request.
    """

    @torch.inference_mode(False)  # a tensor made in inference mode cannot be updated outside it
    def __init__(
        self,
        weight: Tensor,
        settings: Settings,
        *,
        num_groups: int = 1,
        num_requests: int | None = None,
        prior: Tensor | None = None,
        tokenizer: Any = None,
        costs: StepCosts | None = None,
        writes: bool = True,
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
        num_requests = num_groups if num_requests is None else num_requests
        if num_groups not in (1, num_requests):
            expected = f"num_groups = {num_groups}"
            raise ValueError(f"EngineHead: num_requests: expected {expected}, got {num_requests}")
        broken = broken_rows(weight, bias, weight_scale)
        if shard is not None:
            broken = all_gather_rows(
                broken, lm_head_rows, start=shard.start, process_group=shard.process_group
            )
        self.token_map = TokenMap(lm_head_rows, target_vocab_size, row_tokens, device, broken)
        if len(broken):
            rows = self.token_map.row_tokens
            assert rows is not None
            log_broken(rows[broken], "microspec: the draft's LM head")
        most = self.token_map.target_vocab_size
        if (top_k := settings.target_top_k) > most:
            raise ValueError(f"microspec: target_top_k: expected at most {most}, got {top_k}")
        tokens, fingerprint = tokens_of(settings, self.token_map, prior, tokenizer)
        rows = prior_rows(self.token_map, tokens.to(device))
        known = int((self.token_map.to_rows(tokens.to(device)) >= 0).sum())
        if settings.frequent_tokens_file is not None and known == 0:
            expected = "at least one token that the draft has a row for"
            raise ValueError(f"microspec: frequent_tokens_file: expected {expected}, got none")
        self.settings, self._weight = settings, weight.detach()
        self.num_requests = num_requests
        if costs is not None:
            costs = costs_of_head(costs, settings, weight, shared=num_groups == 1)
        sharded = shard is not None
        # A vocabulary that learns is always full, but not of broken rows.
        most = len(rows) if settings.learn else lm_head_rows
        self.vocab = ActiveVocab(
            lm_head_rows,
            num_slots(settings, costs, most, sharded=sharded),
            num_groups=num_groups,
            frequent_tokens=None if settings.learn else rows[:known],
            device=device,
        )
        # Who shares a vocabulary and learns nothing tells no requests, so one stands for all.
        self._tally = Tally(lm_head_rows, num_requests=num_groups, device=device)
        self.learning: Learning | None = None
        if settings.learn:
            self.learning = Learning(
                self.vocab,
                settings,
                num_requests=num_requests,
                rows=rows,
                tokens=fingerprint,
                shard=shard,
                writes=writes,
                costs=costs if may_change(settings, costs, sharded) else None,
            )
        self._shard = shard
        self._others: list[DraftHead] = []
        self.head = self._sparse_head(weight, weight_scale, bias, logit_scale, softcap)
        # One vocabulary that begins with tokens always has some, so every row has a best token.
        self._never_empty = num_groups == 1 and bool(settings.learn or known) and len(rows) > 0
        self.head.follow()
        self._host_copy = HostCopy()

    def _sparse_head(
        self,
        weight: Tensor,
        weight_scale: Tensor | None,
        bias: Tensor | None,
        logit_scale: float,
        softcap: float,
    ) -> SparseHead:
        settings, shard = self.settings, self._shard
        return SparseHead(
            weight,
            self.vocab,
            mode=settings.mode,
            weight_scale=weight_scale,
            slab_dtype=settings.slab_torch_dtype,
            buffers=1 if settings.mode == "packed" else None,
            bias=bias,
            logit_scale=logit_scale,
            softcap=softcap,
            process_group=None if shard is None else shard.process_group,
            start=0 if shard is None else shard.start,
            all_gather=None if shard is None else shard.all_gather,
        )

    @torch.inference_mode(False)
    def with_weight(
        self,
        weight: Tensor,
        *,
        weight_scale: Tensor | None = None,
        bias: Tensor | None = None,
        logit_scale: float = 1.0,
        softcap: float = 0.0,
    ) -> DraftHead:
        """Make another LM head over the same vocabulary. Call before capture.

        Modules of multi-token prediction may have an LM head each. Everything but the calls of a
        draft's step stays with this head.

        Args:
            weight, weight_scale, bias, logit_scale, softcap: as for the constructor; row i is the
                token of row i here.

        Returns:
            an object with :meth:`argmax`, :meth:`topk`, :meth:`sample` and :meth:`row_logits`.

        Raises:
            ValueError, TypeError: as :class:`SparseHead`, or rows with NaN or infinity.
        """
        plain(weight, "EngineHead: with_weight: weight")
        if len(broken := broken_rows(weight, bias, weight_scale)):
            expected = "finite rows"
            raise ValueError(f"EngineHead: with_weight: expected {expected}, got {broken.tolist()}")
        head = self._sparse_head(weight.detach(), weight_scale, bias, logit_scale, softcap)
        self._others.append(DraftHead.beside(self, head))
        self._others[-1]._gather()
        return self._others[-1]

    def reload(self) -> None:
        super().reload()
        for other in self._others:
            other.reload()

    def _gather(self) -> None:
        super()._gather()
        for other in self._others:
            other._gather()

    @property
    def capacity(self) -> int:
        """Number of slots: K of the settings, or the most that "auto" may choose."""
        return self.vocab.capacity

    @property
    def limit(self) -> int:
        """K now: number of slots in use, at most :attr:`capacity`."""
        return self.capacity if self._auto is None else self._auto.limit

    @property
    def _auto(self) -> AutoCapacity | None:
        return None if self.learning is None else self.learning.vocab.auto

    def __str__(self) -> str:
        """Describe the head in one line, for an engine's log."""
        settings, weight, count = self.settings, self._weight, self.vocab.num_groups
        dim = weight.size(1) * (2 if weight.dtype in FOUR_BIT else 1)
        return (
            f"LM head [{self.vocab.vocab_size}, {dim}] "
            f"{str(weight.dtype).removeprefix('torch.')}, {self._told_capacity()}, "
            f"{count} vocabular{'y' if count == 1 else 'ies'}, "
            f"{'learning, ' if settings.learn else ''}target's top-{settings.target_top_k}, "
            f"mode {' '.join(filter(None, (settings.mode, settings.slab_dtype)))}"
        )

    def _told_capacity(self) -> str:
        if self._auto is None:
            return f"K = {self.capacity}"
        return f"K = {self.limit} of up to {self.capacity}"

    @property
    def tally(self) -> Tally:
        """The verdicts on what the target wrote; if the head learns, with its lists' counts."""
        return self._tally if self.learning is None else self.learning.lists.tally

    @property
    def shared(self) -> bool:
        """Whether several requests share one vocabulary."""
        return self.vocab.num_groups < self.num_requests

    def begin(self, requests: Sequence[int], prompts: Sequence[Tensor]) -> None:
        """Begin requests. Call outside capture, before the draft's first step.

        A request's own vocabulary is filled anew. All tokens of its prompt then become active, or,
        if a vocabulary that learns is shared, the newest. Never waits for the device.

        Args:
            requests: numbers of the requests, 0 to num_requests - 1.
            prompts: int32 or int64 [n] of each request, on any device, newest last; -1 is padding.

        Raises:
            IndexError: a number out of range.
        """
        self._wait_for_gather()
        entering, groups = [], []
        if self.learning is None and not self.shared and len(requests):
            numbers = torch.tensor(requests, dtype=torch.int64, device="cpu")
            self.vocab.reset(self._to_device(numbers))
        for request, prompt in zip(requests, prompts, strict=True):
            if not 0 <= request < self.num_requests:
                expected = f"0 to {self.num_requests - 1}"
                raise IndexError(f"EngineHead: begin: requests: expected {expected}, got {request}")
            needed = prompt if self.learning is None else self.learning.needed(prompt)
            rows = self.token_map.to_rows(self._to_device(needed))
            if self.learning is not None:
                rows = self.learning.begin(request, rows)
            entering.append(rows)
            groups.append(torch.full_like(rows, 0 if self.shared else request))
        if entering:
            self.vocab.update(torch.cat(entering), token_groups=torch.cat(groups))
            self._gather()

    def admit(self, tokens: Tensor, token_requests: Tensor | None = None) -> None:
        """Make tokens active that continue no text. Call outside capture.

        Args:
            tokens, token_requests: as for :meth:`observe`.
        """
        self._wait_for_gather()
        groups = token_requests if self.vocab.num_groups > 1 else None
        self.vocab.update(self.token_map.to_rows(tokens), token_groups=groups)
        self._gather()

    def observe(
        self,
        tokens: Tensor,
        token_requests: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
        candidates: Tensor | None = None,
    ) -> None:
        """Take the tokens that the target wrote in a step: judge, count and make them active.

        Call outside capture, between two of the draft's steps. :meth:`stats` tells how many of the
        tokens were active before the call.

        Args:
            tokens: int32 or int64 [N], or [B, n] with a row for each text; newest last; -1 is
                padding. Other ids outside [0, V) are ignored, but an IndexError on a CPU.
            token_requests: int32 or int64 [M + N], the request of each candidate and then of each
                token; -1 ignores a token of a request's own vocabulary, and neither judges nor
                counts one of a shared vocabulary. None with one request, or if nothing is learned
                and all share.
            lengths: int32 or int64 [B], the number of valid tokens of each row of tokens; what
                follows them may be anything.
            candidates: int32 or int64, M tokens that also become active, older than `tokens`.

        Raises:
            ValueError: token_requests is None although there are several requests.
        """
        if token_requests is None and (
            self.vocab.num_groups > 1 or (self.shared and self.learning)
        ):
            expected = f"one per token, because there are {self.num_requests} requests"
            raise ValueError(f"microspec: observe: token_requests: expected {expected}, got None")
        self._wait_for_gather()
        if self.learning is not None and tokens.dim() == 2:
            self.learning.running(len(tokens))
        vocab, tally = self.vocab, self.tally
        groups = token_requests if vocab.num_groups > 1 else None
        learns = self.learning is not None
        vocab_observe_(
            vocab.ids,
            vocab.slot_stamps,
            vocab.token_slots,
            vocab.clock,
            tokens.contiguous(),
            lengths=lengths,
            candidates=candidates,
            token_rows=self.token_map.token_rows,
            token_groups=groups,
            token_requests=token_requests if learns and groups is None else None,
            tally=tally.data,
            num_lists=tally.num_lists,
        )
        self._gather()

    def top_target_tokens(self, logits: Tensor) -> Tensor:
        """Return the target's `target_top_k` likeliest tokens of each row, for :meth:`observe`.

        Args:
            logits: [R, V], the target's logits.

        Returns:
            int64 [R, target_top_k], the likeliest first.
        """
        if (k := self.settings.target_top_k) == 1:  # on a CPU a third of argmax's time
            return logits.max(-1, keepdim=True).indices
        return logits.topk(k).indices

    def reset(self) -> None:
        """Reset all vocabularies, what was learned and the totals to the start.

        Call outside capture. Waits for the device if the head learns.
        """
        self._wait_for_gather()
        self.vocab.reset()
        if self.learning is not None:
            self.learning.reset()
        self.tally.verdicts.zero_()
        self._host_copy = HostCopy()  # drop the pending copy: its totals are from before
        self._gather()

    def stats(self) -> EngineStats | None:
        """Return the newest totals on the host; None before the first copy arrives.

        Never waits for the device: on a GPU, each call returns the totals of an earlier call. Call
        outside capture.
        """
        active = self.vocab.size.sum(0, keepdim=True)
        newest = self._host_copy.poll(torch.cat((self.tally.verdicts.sum(1), active)))
        if newest is None:
            return None
        hits, misses, active_now = newest.tolist()
        return EngineStats(hits, misses, active_now)

    def _to_device(self, values: Tensor) -> Tensor:
        """Copy values to the device without waiting for the copy."""
        device = self.vocab.device
        if values.device.type == "cpu" and device.type == "cuda":
            values = values.pin_memory()
        return values.to(device, non_blocking=True)
