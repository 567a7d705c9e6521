# SPDX-License-Identifier: Apache-2.0
"""The LM head of a draft model over an active vocabulary, as PyTorch modules."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn

from . import ops
from ._linear import plain
from ._shards import LocalVocab
from .parallel import Ranks, all_reduce_ids, all_reduce_logits, check_shards
from .slab import WeightSlab
from .vocab import ActiveVocab

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class _ActiveHead(nn.Module):
    """Base of both heads: it holds the operands of the ops and updates the vocabulary."""

    # Whether weight, weight_scale and bias are in the state_dict. If not, the model saves them.
    _saved = False

    weight: Tensor
    weight_scale: Tensor | None
    bias: Tensor | None

    def __init__(
        self,
        weight: Tensor,
        vocab: ActiveVocab,
        *,
        mode: Literal["indexed", "packed"] = "indexed",
        weight_scale: Tensor | None = None,
        bias: Tensor | None = None,
        logit_scale: float = 1.0,
        softcap: float = 0.0,
        slab_dtype: torch.dtype | Literal["int4"] | None = None,
        buffers: int | None = None,
        process_group: "ProcessGroup | None" = None,
        start: int = 0,
        all_gather: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if mode not in ("indexed", "packed"):
            raise ValueError(f"{name}: mode: expected 'indexed' or 'packed', got {mode!r}")
        for argument, tensor in (
            ("weight", weight),
            ("weight_scale", weight_scale),
            ("bias", bias),
        ):
            if tensor is not None:
                plain(tensor, f"{name}: {argument}")
        whole = process_group is None
        if weight.dim() != 2 or (whole and len(weight) != vocab.vocab_size):
            expected = f"shape [{vocab.vocab_size if whole else 'shard_rows'}, D]"
            raise ValueError(f"{name}: weight: expected {expected}, got {list(weight.shape)}")
        if process_group is None and start != 0:
            raise ValueError(f"{name}: start: expected 0 without process_group, got {start}")
        if mode == "indexed" and (slab_dtype is not None or buffers is not None):
            raise ValueError(f"{name}: slab_dtype, buffers: expected None in indexed mode, got one")
        self.vocab = vocab
        self.mode = mode
        self.process_group, self.start = process_group, start
        # The vocabulary whose token ids are the weight's rows.
        self._row_vocab = vocab
        self._ranks: Ranks | None = None
        if process_group is not None:
            size, device = vocab.vocab_size, vocab.device
            ranges = check_shards(len(weight), start, size, process_group, device)
            self._ranks = Ranks(ranges, process_group, device=device, all_gather=all_gather)
            self._row_vocab = cast(ActiveVocab, LocalVocab(vocab, start, len(weight)))
        # The buffers share memory with the model's tensors and are not trained here.
        for buffer, tensor in (("weight", weight), ("weight_scale", weight_scale), ("bias", bias)):
            view = None if tensor is None else tensor.detach()
            self.register_buffer(buffer, view, persistent=self._saved)
        self.register_load_state_dict_post_hook(_ActiveHead._gather_anew)  # type: ignore[no-untyped-call]
        self.logit_scale, self.softcap = logit_scale, softcap
        self.slab: WeightSlab | None = None
        if mode == "packed":
            # On a CPU the refresh is synchronous: a second buffer would only double the copies.
            count = buffers or (1 if vocab.device.type == "cpu" else 2)
            self.slab = WeightSlab(
                weight.detach(),
                self._row_vocab,
                dtype=slab_dtype,
                buffers=count,
                weight_scale=weight_scale,
            )
            self.slab.refresh()

    def _gather_anew(self, _: object) -> None:
        """Gather the slab's rows again after load_state_dict has replaced the weight."""
        if self.slab is not None:
            self.slab.weight, self.slab.weight_scale = self.weight.detach(), self.weight_scale
            self.slab.invalidate()
            self.slab.refresh()

    def observe(self, tokens: Tensor, *, token_groups: Tensor | None = None) -> None:
        """Add tokens to the vocabulary and refresh the slab.

        Args:
            tokens, token_groups: see :meth:`ActiveVocab.update`, which also raises the errors.
        """
        self.vocab.update(tokens, token_groups=token_groups)
        if self.slab is not None:
            self.slab.refresh()

    def follow(self) -> None:
        """Compute the rows of a rank's shard now, and no longer in each call.

        Call it again after each change of the vocabulary, before the slab is refreshed. Without
        ranks it does nothing.
        """
        if isinstance(self._row_vocab, LocalVocab):
            self._row_vocab.follow()

    def logits(self, hidden: Tensor, row_groups: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Compute the logits of every slot.

        Args:
            hidden: bf16, fp16 or fp32 [..., D], any number of leading dimensions.
            row_groups: int32 or int64 [...], hidden's leading dimensions: the vocabulary's group
                for each row; -1 marks a padding row; required if G > 1.

        Returns:
            logits fp32 [..., K] and token_ids int64 [..., K], in slot order; -inf and -1 at empty
            slots.

        Raises:
            ValueError, TypeError, IndexError: as :func:`~.ops.sparse_logits`.
        """
        logits, operands = self.slot_logits(hidden, row_groups)
        ids, group_ids = operands["active_ids"], operands["group_ids"]
        if self.process_group is not None and self.slab is None:
            ids = self.vocab.ids  # the same on all ranks
        elif self.process_group is not None:
            # Not the vocabulary's: the slab has the tokens of the last refresh.
            ids = all_reduce_ids(ids, start=self.start, process_group=self.process_group)
        ids = ids.long()
        if group_ids is None:
            return logits, ids[0].expand_as(logits)
        ids = ids[group_ids.clamp(min=0).long()]
        return logits, ids[0].expand_as(logits) if group_ids.shape == (1,) else ids

    def slot_logits(
        self, hidden: Tensor, row_groups: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """Compute the logits of every slot without naming its token; see :meth:`logits`.

        Returns:
            logits fp32 [..., K], and the operands of the op.
        """
        operands = self._operands(row_groups)
        logits = ops.sparse_logits(hidden, **operands)
        if self.process_group is not None:
            logits = all_reduce_logits(logits, self.process_group)
        return logits, operands

    def _operands(self, row_groups: Tensor | None) -> dict[str, Any]:
        shared = {"bias": self.bias, "logit_scale": self.logit_scale, "softcap": self.softcap}
        if self.slab is None:
            scale = {"weight_scale": self.weight_scale, "group_ids": row_groups}
            return {"weight": self.weight, "active_ids": self._row_vocab.ids, **scale, **shared}
        rows, ids, slab_scale, group_ids = self.slab.front(row_groups, keep=False)
        slab = {
            "weight": rows,
            "active_ids": ids,
            "weight_scale": slab_scale,
            "group_ids": group_ids,
        }
        return {**slab, "packed": True, **shared}


class SparseHead(_ActiveHead):
    """A module that computes the top-k of the LM head over the active vocabulary.

    With a ``process_group``, each rank holds a part of the LM head's rows. Construction and calls
    are then collectives, and all ranks get the same result (see
    :mod:`microspec_kernels.parallel`). Each rank has its own vocabulary of V tokens and must
    observe the same tokens. A rank's slab has room for K rows and holds the active rows of its
    part.

    Args:
        weight: the LM head [V, D], bf16, fp16 or fp32; int8, float8_e4m3fn or 4-bit rows (uint8
            or float4_e2m1fn_x2 [V, D/2]) with ``weight_scale``.
            With ``process_group``, this rank's part [shard_rows, D], without the padding rows
            that engines put at the end of V; shard_rows may be 0.
        vocab: the active vocabulary, on weight's device.
        mode: "indexed" reads the rows from the weight; "packed" reads them from a
            :class:`WeightSlab`.
        weight_scale: fp32 [V] of a quantised weight; bf16 [V, D/32] or float8_e4m3fn [V, D/16] of
            4-bit rows; shard_rows in place of V with ``process_group``.
        bias: [V], in hidden's dtype or fp32; [shard_rows] with ``process_group``.
        logit_scale, softcap: see :func:`~.ops.sparse_head`.
        slab_dtype: dtype of the slab, in packed mode only, as :class:`WeightSlab` takes it.
        buffers: number of slab buffers, in packed mode only; default: 1 on a CPU, 2 on a GPU.
        process_group: the ranks that share the LM head (``torch.distributed.group.WORLD`` for all);
            None if ``weight`` has all rows.
        start: the token of the first row of ``weight``; 0 without ``process_group``.
        all_gather: gathers fp32 [n, m] of each rank, any bits, to [ranks · n, m], in the order of
            ``process_group``, as an engine's own communicator does. Default: torch.distributed.

    Raises:
        ValueError: unknown mode; wrong shape of weight; a tensor without values (on meta);
            slab_dtype or buffers in indexed mode; errors of :class:`WeightSlab`. With
            ``process_group``: this rank is not in it; the ranks do not hold each of the V tokens
            exactly once. If one rank raises, the others wait for it until the group's timeout.
        TypeError: a tensor of another class (a DTensor, a torchao tensor), or a module in place of
            a tensor. The head computes x · weight + bias only, so it cannot include an adapter or
            a hook. Also a process_group of another class (a DeviceMesh, an engine's own).
    """

    def forward(
        self, hidden: Tensor, k: int, row_groups: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the k best active tokens of each row.

        Args:
            hidden: bf16, fp16 or fp32 [..., D], any number of leading dimensions.
            k: number of entries per row, as for :func:`~.ops.sparse_head`.
            row_groups: int32 or int64 [...], hidden's leading dimensions: the vocabulary's group
                for each row; -1 marks a padding row; required if G > 1.

        Returns:
            logits fp32 [..., k], token_ids int64 [..., k] and logsumexp fp32 [...], padded as in
            :func:`~.ops.sparse_head`.

        Raises:
            ValueError, TypeError, IndexError, NotImplementedError: as :func:`~.ops.sparse_head`.
        """
        top = ops.sparse_head(hidden, k=k, **self._operands(row_groups))
        return top if self._ranks is None else self._ranks.topk(*top)

    def argmax(self, hidden: Tensor, row_groups: Tensor | None = None) -> Tensor:
        """Return the best active token of each row, int64 [...], as :meth:`forward` with k = 1.

        With ranks it launches less, because it merges no logsumexp.

        Args:
            hidden, row_groups: as for :meth:`forward`.
        """
        top = ops.sparse_head(hidden, k=1, **self._operands(row_groups))
        return top[1][..., 0] if self._ranks is None else self._ranks.argmax(*top)

    def sample(
        self,
        hidden: Tensor,
        temperatures: Tensor,
        seeds: Tensor,
        positions: Tensor,
        row_groups: Tensor | None = None,
        *,
        row_tokens: Tensor | None = None,
        token_logits: Tensor | None = None,
        logit_rows: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Draw an active token of each row from softmax(logits / temperature).

        Args:
            hidden, row_groups: as for :meth:`forward`.
            temperatures, seeds, positions, row_tokens, token_logits, logit_rows: see
                :func:`~.ops.sparse_sample`.

        Returns:
            tokens int64 [...] and log_probs fp32 [...].

        Raises:
            ValueError, TypeError, IndexError, NotImplementedError: as :func:`~.ops.sparse_sample`.
            NotImplementedError: ranks share the head (``process_group``).
        """
        if self.process_group is not None:
            raise NotImplementedError(
                "SparseHead: sample: expected a head of all rows, got one with process_group"
            )
        return ops.sparse_sample(
            hidden,
            temperatures=temperatures,
            seeds=seeds,
            positions=positions,
            row_tokens=row_tokens,
            token_logits=token_logits,
            logit_rows=logit_rows,
            **self._operands(row_groups),
        )


class SparseLMHead(_ActiveHead):
    """A drop-in LM head that returns dense logits, -inf for inactive tokens.

    It skips the projection of inactive tokens, but still writes rows of width V. Prefer
    :class:`SparseHead` if the caller only needs the best few tokens. Arguments and errors are those
    of :class:`SparseHead`.

    It can replace a model's LM head, and is saved and loaded like a linear layer: its state_dict
    has ``weight`` and ``bias``, but not the vocabulary. (:class:`SparseHead` stands beside the
    model's LM head and has an empty state_dict.)
    """

    _saved = True

    def forward(self, hidden: Tensor, row_groups: Tensor | None = None) -> Tensor:
        """Compute dense logits.

        Args:
            hidden: bf16, fp16 or fp32 [..., D].
            row_groups: int32 or int64 [...], hidden's leading dimensions: the vocabulary's group
                for each row; -1 marks a padding row; required if G > 1.

        Returns:
            [..., V] in hidden's dtype; -inf for tokens that are not active.

        Raises:
            ValueError, TypeError, IndexError: as :func:`~.ops.sparse_logits`.
        """
        logits, ids = self.logits(hidden, row_groups)
        # Empty slots write to an extra column V, which is cut off below.
        size = self.vocab.vocab_size
        dense = hidden.new_full((*hidden.shape[:-1], size + 1), float("-inf"))
        dense.scatter_(-1, torch.where(ids >= 0, ids, size), logits.to(hidden.dtype))
        return dense[..., :size]
