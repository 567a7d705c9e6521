# SPDX-License-Identifier: Apache-2.0
"""MTP drafts: the multi-token-prediction modules of a target, one after the other."""

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from microspec_kernels._optional import require

from .cache import KVCache
from .eagle import Eagle
from .lm_head import LMHead
from .mtp_cache import ModulesCache, Nodes
from .target import CausalModel, cache_argument


class MtpDraft(Eagle):
    """Multi-token-prediction modules (DeepSeek-V3, arXiv 2412.19437): one decoder layer each.

    `eh_proj` joins the normed embedding of a token and the normed feature of the token before it.
    The layer is the one of `transformers` for the config's model type. `norm` comes behind it; its
    output is the module's feature of the token. The first module reads the target's last hidden
    states, after its final norm, or for MiMo before it.

    With several modules, module d reads the features of module d - 1, attends to entries of its own
    and drafts the d-th token below the newest one; so all read the whole text. Below its first
    token module d knows the drafted tokens before only by what it reads there itself: level d reads
    all drafted nodes with module d. Below the last module, as with a single one, that module goes
    on with its own features.

    So do transformers (`MtpModel`), SGLang and vLLM, but for this: vLLM feeds GLM-4.5's module its
    output before `norm`, and zeroes the embedding at position 0; it begins with the first module
    again below the last one. SGLang gives MiMo's module the hidden state after the norm. MiMo's
    order here is that of its makers' code for vLLM.

    config: of the model type, for a decoder of these layers only. It may have `windows` (see
        `Eagle`).
    hidden_first: whether the hidden state is the first half of `eh_proj`'s input.
    before_norm: whether it is the target's before its final norm.
    lm_head: the head of all modules; None: the target's whole LM head, including bias, scale and
        soft cap.

    Features of a text have a width of modules · D: those of each module. A node's are D wide.

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
        size, eps, count = config.hidden_size, config.rms_norm_eps, config.num_hidden_layers
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
        self.enorm, self.hnorm, self.norm = (
            nn.ModuleList(norm(size, eps) for _ in range(count)) for _ in range(3)
        )
        self.eh_proj = nn.ModuleList(nn.Linear(2 * size, size, bias=False) for _ in range(count))
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

    def new_cache(self) -> KVCache:
        if len(self.layers) == 1:
            return super().new_cache()
        width = len(self.layers) * self.hidden_size
        newest = torch.zeros(1, width, dtype=self.embedding.dtype, device=self.embedding.device)
        return ModulesCache(len(self.layers), newest)

    def head_input(self, features: Tensor) -> Tensor:
        return features[..., : self.hidden_size]

    def extend(self, tokens: Tensor, hidden: Tensor, counts: Tensor, cache: KVCache) -> Tensor:
        if not isinstance(cache, ModulesCache):
            return super().extend(tokens, hidden, counts, cache)
        cache.before = cache.newest[: cache.rows]
        features = super().extend(tokens, hidden, counts, cache)
        cache.newest[: cache.rows] = features
        return features

    def step(
        self, tokens: Tensor, parents: Tensor, positions: Tensor, mask: Tensor, cache: KVCache
    ) -> Tensor:
        if not isinstance(cache, ModulesCache):
            return super().step(tokens, parents, positions, mask, cache)
        last = len(self.layers) - 1
        if cache.nodes is None:
            cache.nodes = Nodes(parents[:, :1])
        nodes = cache.nodes
        if nodes.level == last:
            return super().step(tokens, parents, positions, mask, cache)
        nodes.add(tokens, positions.expand_as(tokens), mask)
        cache.read_again()
        start = (nodes.level - 1) * self.hidden_size
        assert nodes.mask is not None
        read = nodes.parent_features(nodes.roots[..., start : start + self.hidden_size])
        nodes.features = self._read(nodes.positions, nodes.mask, cache, nodes.tokens, read)
        return nodes.features[:, : tokens.shape[1]]

    def _read(
        self, positions: Tensor, mask: Tensor, cache: KVCache, tokens: Tensor, features: Tensor
    ) -> Tensor:
        if isinstance(cache, ModulesCache):
            cache.reading = positions.expand_as(tokens)
        return super()._read(positions, mask, cache, tokens, features)

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
        if not isinstance(cache, ModulesCache):
            return self._module(0, embedded, features, rotation, masks[0], cache)
        if cache.nodes is not None:
            level = cache.nodes.level
            mask = cache.from_column(level, masks[level])
            return self._module(level, embedded, features, rotation, mask, cache)
        found = []
        for module, before in enumerate(cache.before.chunk(len(self.layers), dim=-1)):
            mask = cache.from_column(module, masks[module])
            found.append(self._module(module, embedded, features, rotation, mask, cache))
            features = torch.cat((before[:, None], found[-1][:, :-1]), dim=1)
        out = torch.cat(found, dim=-1)
        cache.before = out[:, -1]
        return out

    def _module(
        self,
        module: int,
        embedded: Tensor,
        features: Tensor,
        rotation: tuple[Tensor, Tensor],
        mask: Tensor,
        cache: KVCache,
    ) -> Tensor:
        """Run one module: return its features [B, n, D] of tokens; see `run`."""
        parts = [self.enorm[module](embedded), self.hnorm[module](features)]
        x = self.eh_proj[module](torch.cat(parts[::-1] if self.hidden_first else parts, dim=-1))
        x = self.layers[module](
            x,
            attention_mask=mask,
            position_embeddings=rotation,
            use_cache=True,
            **{self._cache_argument: cache},
        )
        # Layers of transformers 4 return tuples.
        out: Tensor = self.norm[module](x[0] if isinstance(x, tuple) else x)
        return out


def rotary_options(config: Any) -> dict[str, str]:
    """Return the `layer_type` that a rotary embedding takes if it differs by kind of layer."""
    rope = getattr(config, "rope_parameters", None) or {}
    kind = (getattr(config, "layer_types", None) or [None])[0]
    return {"layer_type": kind} if isinstance(rope.get(kind), dict) else {}
