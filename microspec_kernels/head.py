"""The LM head of a draft model over an active vocabulary, as PyTorch modules."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from . import ops
from ._linear import plain
from .slab import WeightSlab
from .vocab import ActiveVocab


class _ActiveHead(nn.Module):
    """What both heads share: the operands of the ops, and how the vocabulary learns."""

    # Whether the weight is in the module's state_dict; else it is the model's own to save.
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
        slab_dtype: torch.dtype | None = None,
        buffers: int | None = None,
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
        if weight.dim() != 2 or weight.size(0) != vocab.vocab_size:
            raise ValueError(
                f"{name}: weight: expected shape [{vocab.vocab_size}, D], got {list(weight.shape)}"
            )
        if mode == "indexed" and (slab_dtype is not None or buffers is not None):
            raise ValueError(f"{name}: slab_dtype, buffers: expected None in indexed mode, got one")
        self.vocab = vocab
        self.mode = mode
        # Views of the model's own tensors, not trained here.
        for buffer, tensor in (("weight", weight), ("weight_scale", weight_scale), ("bias", bias)):
            view = None if tensor is None else tensor.detach()
            self.register_buffer(buffer, view, persistent=self._saved)
        self.register_load_state_dict_post_hook(_ActiveHead._gather_anew)  # type: ignore[no-untyped-call]
        self.logit_scale, self.softcap = logit_scale, softcap
        self.slab: WeightSlab | None = None
        if mode == "packed":
            # On a CPU the refresh is synchronous: a second buffer would only be gathered twice.
            count = buffers or (1 if vocab.device.type == "cpu" else 2)
            self.slab = WeightSlab(
                weight.detach(), vocab, dtype=slab_dtype, buffers=count, weight_scale=weight_scale
            )
            self.slab.refresh()

    def _gather_anew(self, _: object) -> None:
        """The weight has been loaded: the slab's rows are of the one before."""
        if self.slab is not None:
            self.slab.weight, self.slab.weight_scale = self.weight.detach(), self.weight_scale
            self.slab.invalidate()
            self.slab.refresh()

    def observe(self, tokens: Tensor, *, token_groups: Tensor | None = None) -> None:
        """Let tokens into the vocabulary (see :meth:`ActiveVocab.update`) and refresh the slab."""
        self.vocab.update(tokens, token_groups=token_groups)
        if self.slab is not None:
            self.slab.refresh()

    def logits(self, hidden: Tensor, group_ids: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """hidden [M, D] to logits fp32 [M, K] and token_ids int64 [M, K], slot by slot.

        An empty slot has -inf and -1. group_ids and errors as in :func:`~.ops.sparse_logits`.
        """
        operands = self._operands(hidden, group_ids)
        ids, groups = operands["active_ids"].long(), operands["group_ids"]
        ids = ids.expand(len(hidden), -1) if groups is None else ids[groups.clamp(min=0).long()]
        return ops.sparse_logits(hidden, **operands), ids

    def _operands(self, hidden: Tensor, group_ids: Tensor | None) -> dict[str, Any]:
        shared = {"bias": self.bias, "logit_scale": self.logit_scale, "softcap": self.softcap}
        if self.slab is None:
            scale = {"weight_scale": self.weight_scale, "group_ids": group_ids}
            return {"weight": self.weight, "active_ids": self.vocab.ids, **scale, **shared}
        rows, ids, slab_scale, groups = self.slab.front(group_ids)
        if group_ids is None:
            groups = groups.repeat(hidden.size(0))
        slab = {"weight": rows, "active_ids": ids, "weight_scale": slab_scale, "group_ids": groups}
        return {**slab, "packed": True, **shared}


class SparseHead(_ActiveHead):
    """Top-k of the LM head over the active vocabulary.

    Args:
        weight: the LM head [V, D], bf16, fp16 or fp32; int8 or float8_e4m3fn with ``weight_scale``.
        vocab: the active vocabulary, on weight's device.
        mode: "indexed" reads rows of the weight, "packed" rows of a :class:`WeightSlab`.
        weight_scale: fp32 [V] of a quantised weight.
        bias: [V].
        logit_scale, softcap: see :func:`~.ops.sparse_head`.
        slab_dtype, buffers: of the slab, in packed mode.

    Raises:
        ValueError: mode, weight's shape, or a tensor without values (on meta).
        TypeError: a tensor of another class (DTensor, torchao's), or a module for one: a head that
            is more than x · weight + bias, by an adapter or a hook, has no place here.
    """

    def forward(
        self, hidden: Tensor, k: int, group_ids: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """hidden [M, D] to logits fp32 [M, k], token_ids int64 [M, k], logsumexp fp32 [M].

        group_ids: int32 or int64 [M], each row's group of the vocabulary; needed when G > 1.
        Padding and errors as in :func:`~.ops.sparse_head`.
        """
        return ops.sparse_head(hidden, k=k, **self._operands(hidden, group_ids))


class SparseLMHead(_ActiveHead):
    """Drop-in for an LM head that must give dense logits: -inf off the active set.

    Skips the projection, not the V-wide row: prefer :class:`SparseHead` where the caller only needs
    the best few. Arguments are those of :class:`SparseHead`.

    In a model's place for its LM head, it is saved and loaded as a linear layer is: ``weight`` and
    ``bias`` are in its state_dict, the vocabulary is not. (:class:`SparseHead`, which stands beside
    the model's own LM head, has an empty state_dict.)
    """

    _saved = True

    def forward(self, hidden: Tensor, group_ids: Tensor | None = None) -> Tensor:
        """hidden [..., D] to logits [..., V] in hidden's dtype.

        group_ids: int32 or int64, one for each row of hidden, flattened; needed when G > 1.
        """
        flat = hidden.reshape(-1, hidden.size(-1))
        logits, ids = self.logits(flat, group_ids)
        # One column more than V takes what empty slots would write.
        size = self.vocab.vocab_size
        dense = hidden.new_full((len(flat), size + 1), float("-inf"))
        dense.scatter_(1, torch.where(ids >= 0, ids, size), logits.to(hidden.dtype))
        return dense[:, :size].view(*hidden.shape[:-1], size)
