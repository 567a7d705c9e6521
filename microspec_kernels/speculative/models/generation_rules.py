# SPDX-License-Identifier: Apache-2.0
"""Find the rules of a generation config that the loop does not apply."""

from collections.abc import Sized
from typing import Any

# Fields that are no rules: fields that change no token (outputs, caches, lengths that the loop has
# arguments for), fields that the loop applies or has its own argument for, and fields that only
# modify other rules, which are named themselves. Any other field that is set counts as a rule,
# including fields of later versions of transformers.
_NO_RULES = (
    "max_length", "max_new_tokens", "do_sample", "temperature", "top_k", "top_p",
    "num_return_sequences", "bos_token_id", "eos_token_id", "pad_token_id",
    "decoder_start_token_id",
    "use_cache", "cache_implementation", "cache_config", "max_cache_len", "prefill_chunk_size",
    "compile_config", "disable_compile", "low_memory", "continuous_batching_config",
    "output_attentions", "output_hidden_states", "output_scores", "output_logits",
    "return_dict_in_generate", "return_legacy_cache", "renormalize_logits",
    "remove_invalid_values", "transformers_version", "generation_kwargs",
    # For beam search.
    "early_stopping", "length_penalty", "diversity_penalty", "num_beam_groups",
    # For assisted generation, whose output is the target's, too.
    "is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule",
    "assistant_confidence_threshold", "prompt_lookup_num_tokens", "max_matching_ngram_size",
    "assistant_early_exit", "assistant_lookbehind", "target_lookbehind",
    "assistant_ensemble_weight", "speculation_type", "use_mtp",
)  # fmt: skip
_NEUTRAL = {
    "repetition_penalty": 1, "encoder_repetition_penalty": 1, "guidance_scale": 1, "num_beams": 1,
    "typical_p": 1,
}  # fmt: skip


def dropped_rules(config: Any) -> dict[str, Any]:
    """Return the set fields of a `GenerationConfig` that would change the text, with their values.

    None gives an empty dict.
    """
    return (
        {
            name: value
            for name, value in vars(config).items()
            if not name.startswith("_") and name not in _NO_RULES and _asks(name, value)
        }
        if config is not None
        else {}
    )


def _asks(name: str, value: Any) -> bool:
    """Return whether the field's value changes anything."""
    if value is None or value is False or (isinstance(value, Sized) and len(value) == 0):
        return False
    # 0 turns a numeric rule off, but it is a valid token id.
    off = _NEUTRAL.get(name, None if name.endswith("_token_id") else 0)
    return bool(value != off)
