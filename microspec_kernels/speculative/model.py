"""A Hugging Face causal LM, run over new tokens of a batch of texts with trees as its mask."""

import inspect
import logging
from collections.abc import Sequence
from typing import Any, get_args

import torch
from torch import Tensor

from .cache import KVCache, causal, visible
from .extra import require
from .lm_head import LMHead

logger = logging.getLogger(__name__)

# Between the final norm and the logits of these lies nothing but what `LMHead` computes; behind
# anything else the draft heads would rank by other logits. By the masks that they take:
FULL = ("llama", "gemma", "granite", "cohere")  # all layers see everything, whatever configs say
WINDOWED = ("mistral",)  # all layers have the config's window, if it has one
MIXED = ("qwen2", "qwen3", "gemma2", "gemma3_text", "cohere2")  # some have it: a mask a kind
MODEL_TYPES = FULL + WINDOWED + MIXED
# Rotary embeddings that depend on the longest position seen so far: a tree's deepest node would
# change the rotation of tokens that the model alone would have rotated otherwise.
LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")
# A prompt goes through in pieces of this many tokens: a mask [512, prompt] and, where they are
# wanted, logits [512, V] (268 MB in fp32 at V = 128k) bound the memory of any prompt's prefill.
CHUNK = 512


class CausalModel:
    """A causal LM of `transformers` whose kind is in MODEL_TYPES, in evaluation mode.

    Attributes: `hidden_size`, `vocab_size`, `device`, `dtype`, `eos` (the set of end-of-text ids
    of its generation config), `embedding` [V, D], `lm_head`, and `longest`: the positions within
    which a tree leaves the rotary embedding alone, None where it always does.

    Raises TypeError: not such a model. ValueError: a kind that is not among those, or an attention
    implementation that cannot be given a tree or leaves out a soft cap.
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
        if getattr(config, "attn_logit_softcapping", None) and attention != "eager":
            raise ValueError(
                "CausalModel: model: expected attn_implementation 'eager', the one that applies "
                f"attn_logit_softcapping, got {attention!r}"
            )
        self.model = model.eval()
        self.config = config
        head = model.get_output_embeddings()
        self.embedding: Tensor = model.get_input_embeddings().weight.detach()
        bias = None if head.bias is None else head.bias.detach()
        # Cohere multiplies its logits, Granite divides them, Gemma caps them.
        scale = getattr(config, "logit_scale", None) or 1 / getattr(config, "logits_scaling", 1)
        softcap = getattr(config, "final_logit_softcapping", None) or 0.0
        self.lm_head = LMHead(head.weight.detach(), bias, scale, softcap)
        self.vocab_size, self.hidden_size = head.weight.shape
        self.device: torch.device = head.weight.device
        self.dtype: torch.dtype = head.weight.dtype
        self._additive_mask = attention == "eager"
        # Under the name that checkpoints have it; `base_model` and `get_decoder` differ by version.
        self._decoder = model.model
        self._cache_argument = cache_argument(self._decoder)
        windowed = config.model_type not in FULL
        self._window: int | None = getattr(config, "sliding_window", None) if windowed else None
        self.longest = _longest(config)
        generation = getattr(model, "generation_config", None)
        eos = getattr(generation, "eos_token_id", None)
        self.eos: frozenset[int] = frozenset([eos] if isinstance(eos, int) else eos or ())
        penalty = getattr(generation, "repetition_penalty", None)
        if penalty not in (None, 1.0):
            logger.warning("plain greedy search: repetition_penalty=%s is not applied", penalty)

    def new_cache(self) -> KVCache:
        """An empty cache for one text."""
        return KVCache(self.config.num_hidden_layers)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [.., V] of what the final norm gave, [.., D]."""
        return self.lm_head.logits(hidden)

    def prefill(
        self, tokens: Tensor, cache: KVCache, taps: Sequence[int] = ()
    ) -> tuple[Tensor, Tensor]:
        """Append tokens int64 [n] that follow one another to one text.

        Returns what `forward` does, [n, D] and [n, F].
        """
        pieces = [
            self.forward(piece[None], causal(len(piece), piece.device), cache, taps)
            for piece in torch.split(tokens, CHUNK)
        ]
        hidden, features = (torch.cat(parts, dim=1)[0] for parts in zip(*pieces, strict=True))
        return hidden, features

    def forward(
        self,
        tokens: Tensor,
        lineage: Tensor,
        cache: KVCache,
        taps: Sequence[int] = (),
        counts: Sequence[int] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Append tokens int64 [B, n], whose ancestors `lineage` [B, n, m] tells (see `visible`).

        `counts`: how many of its n tokens each text keeps, the rest being padding; None: all. The
        entries stay in the cache until the caller's `cache.keep`.

        Returns the hidden states after the final norm, [B, n, D], and the features that a draft
        reads, [B, n, F]: the same, or side by side those that enter the layers `taps`.
        """
        mask, positions = visible(lineage, cache.lengths)
        masks: Any = self._for_attention(mask)
        if self._window is not None:
            within = self._for_attention(visible(lineage, cache.lengths, self._window)[0])
            both = {"full_attention": masks, "sliding_attention": within}
            masks = both if self.config.model_type in MIXED else within
        out = self._decoder(
            input_ids=tokens,
            attention_mask=masks,
            position_ids=positions,
            use_cache=True,
            output_hidden_states=bool(taps),
            **{self._cache_argument: cache},
        )
        cache.advance(tokens.shape[1] if counts is None else counts)
        hidden: Tensor = out.last_hidden_state
        if not taps:
            return hidden, hidden
        return hidden, torch.cat([out.hidden_states[tap] for tap in taps], dim=-1)

    def _for_attention(self, mask: Tensor) -> Tensor:
        """A bool mask [B, n, length] as SDPA takes it, or as eager attention adds it."""
        if not self._additive_mask:
            return mask[:, None]
        hidden = torch.finfo(self.dtype).min
        return torch.zeros(mask.shape, dtype=self.dtype, device=mask.device).masked_fill_(
            ~mask, hidden
        )[:, None]


def cache_argument(decoder: Any) -> str:
    """Return the name under which `decoder.forward` takes its KV cache: it differs by version."""
    cache = require("transformers").Cache
    parameters = inspect.signature(decoder.forward).parameters.values()
    names = [one.name for one in parameters if cache in (one.annotation, *get_args(one.annotation))]
    if len(names) != 1:
        raise TypeError(
            f"CausalModel: model: expected one argument of {type(decoder).__name__}.forward to be "
            f"a transformers Cache, got {names}"
        )
    return names[0]


def _longest(config: Any) -> int | None:
    """The positions within which a config's rotary embeddings depend on none, None for all."""
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    # Gemma 3 has one for each kind of layers.
    each = [value for value in rope.values() if isinstance(value, dict)] or [rope]
    limits: list[int] = [
        one.get("original_max_position_embeddings") or config.max_position_embeddings
        for one in each
        if one.get("rope_type") in LENGTH_DEPENDENT_ROPE
    ]
    return min(limits, default=None)
