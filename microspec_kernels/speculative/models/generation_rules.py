"""What a generation config asks of the text that the loop does not do."""

from collections.abc import Sized
from typing import Any

# What decides no token (outputs, caches, lengths that the loop's own arguments say), what the loop
# has its own argument for or honours, and what matters beside other rules alone, which are named.
# Whatever else is set is a rule, also one that a later version of transformers brings.
_NO_RULES = (
    "max_length", "max_new_tokens", "do_sample", "temperature", "top_k", "top_p",
    "num_return_sequences", "bos_token_id", "eos_token_id", "pad_token_id",
    "decoder_start_token_id",
    "use_cache", "cache_implementation", "cache_config", "max_cache_len", "prefill_chunk_size",
    "compile_config", "disable_compile", "low_memory", "continuous_batching_config",
    "output_attentions", "output_hidden_states", "output_scores", "output_logits",
    "return_dict_in_generate", "return_legacy_cache", "renormalize_logits",
    "remove_invalid_values", "transformers_version", "generation_kwargs",
    # Of beams.
    "early_stopping", "length_penalty", "diversity_penalty", "num_beam_groups",
    # Of assisted generation, whose text is the target's as well.
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
    """The fields of a `GenerationConfig`, or of None, that would have another text written."""
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
    """Whether the field has a value that changes anything."""
    if value is None or value is False or (isinstance(value, Sized) and len(value) == 0):
        return False
    # 0 switches off whatever is a number, but is the id of a token.
    off = _NEUTRAL.get(name, None if name.endswith("_token_id") else 0)
    return bool(value != off)
