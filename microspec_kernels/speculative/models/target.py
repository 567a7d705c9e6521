# SPDX-License-Identifier: Apache-2.0
"""`CausalModel`: a Hugging Face causal LM that runs new tokens of a batch under tree masks."""

import copy
import functools
import inspect
import logging
from collections.abc import Sequence
from functools import cached_property
from typing import Any, get_args

import torch
from torch import Tensor, nn

from microspec_kernels._linear import embedding_rows, linear_rows
from microspec_kernels._optional import require

from .cache import KVCache
from .generation_rules import dropped_rules
from .lm_head import LMHead, scaled
from .supported import FULL, MIXED, experts_wait_for_nothing, supported

logger = logging.getLogger(__name__)

# Rotary embeddings that depend on the longest position seen so far. A tree's deepest node would
# change the rotation of other tokens, so the output would differ from the model's own.
LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")
# A prompt runs in pieces of this many tokens. This bounds a prefill's memory to a mask [512,
# prompt] and, if all logits are wanted, logits [512, V] (268 MB in fp32 at V = 128k).
CHUNK = 512


class CausalModel:
    """A causal LM of `transformers` whose type is in MODEL_TYPES, in evaluation mode.

    The loop calls the model's own modules, the LM head included, so their adapters, hooks and
    quantisation stay in effect. A `PeftModel` is unwrapped if all its adapters are LoRA; adapters
    of other kinds may work outside the model's modules.

    Attributes:
        hidden_size, vocab_size, device, dtype: the model's.
        num_embeddings: number of tokens it can read.
        eos: the end-of-text ids of its generation config.
        capturable: whether a CUDA graph can capture a pass: no rotary embedding that depends on the
            text's length, and no experts whose tokens are counted on the host.
        longest: number of positions within which a tree does not change the rotary embedding; None:
            no limit.
        embedding, lm_head: lent to drafts.

    Raises TypeError: the object is not a Hugging Face causal LM. ValueError: an unsupported model
    type, an attention implementation that cannot take a tree's mask or omits a soft cap, adapters
    other than LoRA, forward hooks on the whole model, or weights on several devices or on meta
    (offloaded).
    """

    def __init__(self, model: Any) -> None:
        model = supported(model)
        config = model.config
        self.model = model.eval()
        self.config = config
        # Cohere multiplies its logits, Granite divides them, Gemma caps them.
        self._scale: float = getattr(config, "logit_scale", None) or 1 / getattr(
            config, "logits_scaling", 1
        )
        self._softcap: float = getattr(config, "final_logit_softcapping", None) or 0.0
        self.vocab_size: int = getattr(self._head, "out_features", config.vocab_size)
        embedding = model.get_input_embeddings()
        self.num_embeddings: int = getattr(embedding, "num_embeddings", self.vocab_size)
        self.hidden_size: int = config.hidden_size
        self.device: torch.device = model.device
        self.dtype: torch.dtype = model.dtype
        self._additive_mask = getattr(config, "_attn_implementation", "eager") == "eager"
        # `model` is the name in checkpoints; `base_model` and `get_decoder` differ by version.
        self._decoder = self._decoder_of_steps = model.model
        self._cache_class = KVCache
        self._cache_argument = cache_argument(self._decoder)
        windowed = config.model_type not in FULL
        self._window: int | None = getattr(config, "sliding_window", None) if windowed else None
        self.longest = _longest(config)
        self.capturable = self.longest is None and experts_wait_for_nothing(model)
        generation = getattr(model, "generation_config", None)
        eos = getattr(generation, "eos_token_id", None)
        self.eos: frozenset[int] = frozenset([eos] if isinstance(eos, int) else eos or ())
        for name, value in dropped_rules(generation).items():
            logger.warning("generation config: %s=%s is not applied", name, value)

    @property
    def _head(self) -> nn.Module:
        """The LM head, looked up at every use: an adapter added later replaces the module."""
        head: nn.Module = self.model.get_output_embeddings()
        return head

    @property
    def has_plain_head(self) -> bool:
        """Whether the LM head is exactly its rows and bias, so that a draft may use them."""
        try:
            linear_rows(self._head, "")
        except (TypeError, ValueError):
            return False
        return True

    @cached_property
    def lm_head(self) -> LMHead:
        """The LM head's rows, bias, scale and soft cap.

        Raises TypeError, naming the module: it is not exactly `nn.Linear`.
        """
        weight, bias = linear_rows(self._head, f"{type(self.model).__name__}: LM head")
        return LMHead(weight, bias, self._scale, self._softcap)

    @cached_property
    def embedding(self) -> Tensor:
        """The embedding's rows [V, D]. Gemma's scale of the embedding is not applied to them.

        Raises TypeError, naming the module: it computes more than its rows.
        """
        name, home = type(self.model).__name__, type(self.model).__module__
        return embedding_rows(self.model.get_input_embeddings(), f"{name}: embedding", home)

    def new_cache(self) -> KVCache:
        """Return an empty cache for one text."""
        return self._cache_class(self.config.num_hidden_layers, self.device)

    def compiled(self) -> "CausalModel":
        """Return this model with its passes of a step, not of a prompt, under `torch.compile`.

        The cache is not compiled: its room grows, and its lengths would be guards. So the compiled
        graphs end where a layer writes its entries.
        """
        other = copy.copy(self)
        other._decoder_of_steps = torch.compile(self._decoder)
        other._cache_class = opaque_cache()
        return other

    def logits(self, hidden: Tensor) -> Tensor:
        """Return logits [.., V] of normed hidden states [.., D], by calling the LM head."""
        return scaled(self._head(hidden), self._scale, self._softcap)

    def prefill(
        self, tokens: Tensor, cache: KVCache, feature_layers: Sequence[int] = ()
    ) -> tuple[Tensor, Tensor]:
        """Append consecutive tokens int64 [n] to the one text of a cache.

        Returns the two results of `forward` without the batch dimension, [n, D] and [n, F].
        """
        read = []
        for piece in torch.split(tokens, CHUNK):
            positions, mask = cache.ahead(len(piece)), cache.causal(len(piece))
            read.append(
                self._forward(self._decoder, piece[None], positions, mask, cache, feature_layers)
            )
            cache.keep_all()
        hidden, features = (torch.cat(parts, dim=1)[0] for parts in zip(*read, strict=True))
        return hidden, features

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        mask: Tensor,
        cache: KVCache,
        feature_layers: Sequence[int] = (),
    ) -> tuple[Tensor, Tensor]:
        """Read tokens int64 [B, n]; their entries stay pending in the cache.

        `positions` int64 [B, n]: of the tokens in their texts. `mask` bool [B, n, columns]: the
        columns of the cache that each token sees (see `KVCache.mask`). `feature_layers`: layers
        whose inputs the draft reads.

        Returns the hidden states after the final norm, [B, n, D], and the features that a draft
        reads, [B, n, F]: the inputs of `feature_layers` concatenated, or without `feature_layers`
        the same hidden states.
        """
        decoder = self._decoder_of_steps
        return self._forward(decoder, tokens, positions, mask, cache, feature_layers)

    def _forward(
        self,
        decoder: Any,
        tokens: Tensor,
        positions: Tensor,
        mask: Tensor,
        cache: KVCache,
        feature_layers: Sequence[int],
    ) -> tuple[Tensor, Tensor]:
        masks: Any = self._for_attention(mask)
        if self._window is not None:
            within = self._for_attention(cache.within(mask, positions, self._window))
            both = {"full_attention": masks, "sliding_attention": within}
            masks = both if self.config.model_type in MIXED else within
        out = decoder(
            input_ids=tokens,
            attention_mask=masks,
            position_ids=positions,
            use_cache=True,
            output_hidden_states=bool(feature_layers),
            **{self._cache_argument: cache},
        )
        cache.advance(positions)
        hidden: Tensor = out.last_hidden_state
        if not feature_layers:
            return hidden, hidden
        return hidden, torch.cat([out.hidden_states[layer] for layer in feature_layers], dim=-1)

    def _for_attention(self, mask: Tensor) -> Tensor:
        """Convert a bool mask [B, n, length] for SDPA, or to eager attention's additive mask."""
        if not self._additive_mask:
            return mask[:, None]
        hidden = torch.finfo(self.dtype).min
        return torch.zeros(mask.shape, dtype=self.dtype, device=mask.device).masked_fill_(
            ~mask, hidden
        )[:, None]


@functools.cache
def opaque_cache() -> type[KVCache]:
    """Return a cache that `torch.compile` calls but does not look into."""

    class OpaqueCache(KVCache):
        update = torch.compiler.disable(KVCache.update)

    return OpaqueCache


def cache_argument(decoder: Any) -> str:
    """Return the name of the KV cache argument of `decoder.forward`, which differs by version."""
    cache = require("transformers", "speculative").Cache
    parameters = inspect.signature(decoder.forward).parameters.values()
    names = [one.name for one in parameters if cache in (one.annotation, *get_args(one.annotation))]
    if len(names) != 1:
        raise TypeError(
            f"CausalModel: model: expected one argument of {type(decoder).__name__}.forward to be "
            f"a transformers Cache, got {names}"
        )
    return names[0]


def _longest(config: Any) -> int | None:
    """Return the length up to which the rotary embeddings do not depend on the text's length.

    None: no limit.
    """
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    # Gemma 3 has one for each kind of layer.
    each = [value for value in rope.values() if isinstance(value, dict)] or [rope]
    limits: list[int] = [
        one.get("original_max_position_embeddings") or config.max_position_embeddings
        for one in each
        if one.get("rope_type") in LENGTH_DEPENDENT_ROPE
    ]
    return min(limits, default=None)
