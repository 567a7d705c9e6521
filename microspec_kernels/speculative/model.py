"""A Hugging Face causal LM, run over new tokens of one sequence with a tree as its mask."""

import logging
from typing import Any

import torch
from torch import Tensor

from .cache import KVCache, causal, visible

logger = logging.getLogger(__name__)

# Between the final norm and the logits of these lies nothing but the LM head; elsewhere (Gemma's
# soft cap, Granite's or Cohere's scale) the draft heads would rank by other logits.
MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
# Rotary embeddings that depend on the longest position seen so far: a tree's deepest node would
# change the rotation of tokens that the model alone would have rotated otherwise.
LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")
# A prompt goes through in pieces of this many tokens: a mask [512, prompt] and, where they are
# wanted, logits [512, V] (268 MB in fp32 at V = 128k) bound the memory of any prompt's prefill.
CHUNK = 512


class CausalModel:
    """`transformers`' Llama, Mistral, Qwen2 or Qwen3 for causal LM, in evaluation mode.

    Attributes: `hidden_size`, `vocab_size`, `device`, `dtype`, `eos` (the set of end-of-text ids
    of its generation config), `embedding` and `head_weight` [V, D], `head_bias` [V] or None, and
    `longest`: the positions within which a tree leaves the rotary embedding alone, None where it
    always does.

    Raises TypeError: not such a model. ValueError: a kind, or an attention implementation, that
    cannot be given a tree.
    """

    def __init__(self, model: Any) -> None:
        config = getattr(model, "config", None)
        if config is None or not hasattr(model, "get_output_embeddings"):
            raise TypeError(
                f"CausalModel: model: expected a Hugging Face causal LM, got {type(model).__name__}"
            )
        if config.model_type not in MODEL_TYPES:
            raise ValueError(
                f"CausalModel: model: expected a model_type of {', '.join(MODEL_TYPES)}, "
                f"got {config.model_type!r}"
            )
        attention = getattr(config, "_attn_implementation", "eager")
        if attention not in ("sdpa", "eager"):
            raise ValueError(
                "CausalModel: model: expected attn_implementation 'sdpa' or 'eager', which take a "
                f"tree's mask, got {attention!r}"
            )
        self.model = model.eval()
        self.config = config
        head = model.get_output_embeddings()
        self.embedding: Tensor = model.get_input_embeddings().weight.detach()
        self.head_weight: Tensor = head.weight.detach()
        self.head_bias: Tensor | None = None if head.bias is None else head.bias.detach()
        self.vocab_size, self.hidden_size = head.weight.shape
        self.device: torch.device = head.weight.device
        self.dtype: torch.dtype = head.weight.dtype
        self._additive_mask = attention == "eager"
        # Llama's attention has no window, whatever its config may say.
        windowed = config.model_type != "llama"
        self._window: int | None = getattr(config, "sliding_window", None) if windowed else None
        rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)
        rope = rope or {}
        self.longest: int | None = None
        if rope.get("rope_type") in LENGTH_DEPENDENT_ROPE:
            longest = rope.get("original_max_position_embeddings")
            self.longest = longest or config.max_position_embeddings
        generation = getattr(model, "generation_config", None)
        eos = getattr(generation, "eos_token_id", None)
        self.eos: frozenset[int] = frozenset([eos] if isinstance(eos, int) else eos or ())
        penalty = getattr(generation, "repetition_penalty", None)
        if penalty not in (None, 1.0):
            logger.warning("plain greedy search: repetition_penalty=%s is not applied", penalty)

    def new_cache(self) -> KVCache:
        """An empty cache for one sequence."""
        return KVCache(self.config.num_hidden_layers)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [n, V] of features [n, D]."""
        logits: Tensor = self.model.get_output_embeddings()(hidden)
        return logits

    def prefill(self, tokens: Tensor, cache: KVCache) -> Tensor:
        """Append tokens int64 [n] that follow one another. Returns their features [n, D]."""
        pieces = torch.split(tokens, CHUNK)
        return torch.cat([self.forward(p, causal(len(p), p.device), cache) for p in pieces])

    def forward(self, tokens: Tensor, lineage: Tensor, cache: KVCache) -> Tensor:
        """Append tokens int64 [n], whose ancestors `lineage` [n, m] tells (see `visible`).

        Returns their features after the final norm, [n, D]. The entries stay in the cache until
        the caller's `cache.keep`.
        """
        length = cache.length + len(tokens)
        mask, positions = visible(lineage, length)
        masks: Any = self._for_attention(mask)
        if self._window is not None:
            within = self._for_attention(visible(lineage, length, self._window)[0])
            # All of Mistral's layers have the window; Qwen mixes two kinds and takes both masks.
            qwen = {"full_attention": masks, "sliding_attention": within}
            masks = within if self.config.model_type == "mistral" else qwen
        out = self.model.base_model(
            input_ids=tokens[None],
            attention_mask=masks,
            position_ids=positions[None],
            past_key_values=cache,
            use_cache=True,
        )
        cache.advance(len(tokens))
        hidden: Tensor = out.last_hidden_state[0]
        return hidden

    def _for_attention(self, mask: Tensor) -> Tensor:
        """A bool mask [n, length] as SDPA takes it, or as eager attention adds it."""
        if not self._additive_mask:
            return mask[None, None]
        hidden = torch.finfo(self.dtype).min
        return torch.zeros(mask.shape, dtype=self.dtype, device=mask.device).masked_fill_(
            ~mask, hidden
        )[None, None]
