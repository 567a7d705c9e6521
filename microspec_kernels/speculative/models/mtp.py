# SPDX-License-Identifier: Apache-2.0
"""MTP drafts: the multi-token-prediction module of a target, applied to its own output."""

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from microspec_kernels._optional import require

from .cache import KVCache
from .eagle import Eagle
from .lm_head import LMHead
from .target import CausalModel, cache_argument


class MtpDraft(Eagle):
    """A multi-token-prediction module (DeepSeek-V3, arXiv 2412.19437): one decoder layer.

    `eh_proj` joins the normed embedding of token i+1 and the normed hidden state of token i. The
    layer is the one of `transformers` for the config's model type. `norm` comes behind it; its
    output goes to the LM head and, inside a tree, to the next call of the same module. For verified
    text the hidden state is the target's last one, after its final norm, or for MiMo before it.

    So do transformers (`MtpModel`), SGLang and vLLM, but for this: vLLM feeds GLM-4.5's module its
    output before `norm`, and zeroes the embedding at position 0; SGLang gives MiMo's module the
    hidden state after the norm. MiMo's order here is that of its makers' code for vLLM.

    config: of the model type, for a decoder of this one layer. It may have `windows` (see `Eagle`).
    hidden_first: whether the hidden state is the first half of `eh_proj`'s input.
    before_norm: whether it is the target's before its final norm.
    lm_head: None: the target's whole LM head, including bias, scale and soft cap.

    Raises ValueError: the hidden size differs from the target's. TypeError: the target's LM head or
    embedding, if needed, is not exactly its rows.
    """

    def __init__(
        self,
        config: Any,
        target: CausalModel,
        embedding: Tensor | None = None,
        lm_head: LMHead | None = None,
        hidden_first: bool = False,
        before_norm: bool = False,
    ) -> None:
        super().__init__(config, target, embedding)
        size, eps = config.hidden_size, config.rms_norm_eps
        if size != target.hidden_size:
            raise ValueError(
                f"MtpDraft: hidden_size: expected the target's {target.hidden_size}, got {size}"
            )
        self.lm_head = target.lm_head if lm_head is None else lm_head
        self.hidden_first = hidden_first
        # `hnorm` divides by the length of its input, so dividing by the final norm's weight gives
        # what that norm has read.
        self._undone: Tensor | None = None
        if before_norm:
            self._undone = target.model.model.norm.weight.detach().float().reciprocal()
        # On "meta", because the model also has an embedding and an LM head, which are not needed.
        with torch.device("meta"):
            model = require("transformers", "speculative").AutoModelForCausalLM.from_config(
                config, attn_implementation="sdpa"
            )
        decoder = model.model
        norm: Any = type(decoder.norm)
        self.enorm, self.hnorm, self.norm = norm(size, eps), norm(size, eps), norm(size, eps)
        self.eh_proj = nn.Linear(2 * size, size, bias=False)
        self.layers = decoder.layers.to_empty(device=target.device)
        self.to(device=target.device, dtype=target.dtype)
        exact = getattr(model, "_keep_in_fp32_modules_strict", None) or ()
        for name, tensor in chain(self.named_parameters(), self.named_buffers()):
            if any(part in name for part in exact):
                tensor.data = tensor.data.float()
        # After the cast: frequencies in half precision would lose the positions.
        self.rotary = type(decoder.rotary_emb)(config).to(target.device)
        self._rotary_options = rotary_options(config)
        self._cache_argument = cache_argument(self.layers[0])
        # transformers may count the experts' tokens on the host.
        self.capturable = not any("experts" in name for name, _ in self.named_parameters())

    def rotations(self, positions: Tensor) -> Tensor:
        parts = self.rotary(self.embedding, positions, **self._rotary_options)
        return torch.stack(parts, dim=-2)[0]

    def fuse(self, features: Tensor) -> Tensor:
        if self._undone is None:
            return features
        return (features * self._undone).nan_to_num(posinf=0, neginf=0).to(features.dtype)

    def run(
        self,
        embedded: Tensor,
        features: Tensor,
        rotation: tuple[Tensor, Tensor],
        masks: Sequence[Tensor],
        cache: KVCache,
    ) -> Tensor:
        parts = [self.enorm(embedded), self.hnorm(features)]
        x = self.eh_proj(torch.cat(parts[::-1] if self.hidden_first else parts, dim=-1))
        x = self.layers[0](
            x,
            attention_mask=masks[0],
            position_embeddings=rotation,
            use_cache=True,
            **{self._cache_argument: cache},
        )
        # Layers of transformers 4 return tuples.
        out: Tensor = self.norm(x[0] if isinstance(x, tuple) else x)
        return out


def rotary_options(config: Any) -> dict[str, str]:
    """Return the `layer_type` that a rotary embedding takes if it differs by kind of layer."""
    rope = getattr(config, "rope_parameters", None) or {}
    kind = (getattr(config, "layer_types", None) or [None])[0]
    return {"layer_type": kind} if isinstance(rope.get(kind), dict) else {}
