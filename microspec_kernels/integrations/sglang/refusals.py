"""What the plugin does not serve, each by its name in SGLang's configuration or on the LM head."""

from typing import Any

from microspec_kernels.integrations.engine import SWITCH, Refused, Settings

ALGORITHMS = ("EAGLE", "EAGLE3")
DRAFTS = ("LlamaForCausalLMEagle", "LlamaForCausalLMEagle3")
"""Draft models that were tested: EAGLE's and, for targets of every kind, EAGLE-3's."""

_EXPECTED: tuple[tuple[str, str, object], ...] = (
    # Needs the draft's probabilities over all of V.
    ("spec", "speculative_use_rejection_sampling", False),
    # FR-Spec: a fixed small vocabulary instead of the active one.
    ("spec", "speculative_token_map", None),
    # Not tested.
    ("spec", "speculative_adaptive", False),
    ("spec", "enable_multi_layer_eagle", False),
    ("lora", "enable_lora", False),
    # A rank would see a part of the requests or of the layers.
    ("parallel", "attn_dp_size", 1),
    ("parallel", "attn_cp_size", 1),
    ("parallel", "pp_size", 1),
    # Its other half would have to know this one's slots.
    ("disagg", "disaggregation_mode", "null"),
)


def check_settings(settings: Settings) -> None:
    """Refuse settings that SGLang has no place for.

    Raises:
        Refused: names the setting.
    """
    if settings.vocabulary != "shared":
        expected = "'shared', as SGLang looks all drafted tokens up in one map"
        raise Refused(f"sglang: {SWITCH}: vocabulary", expected, repr(settings.vocabulary))


def check_config() -> None:
    """Refuse what is not served, before anything is loaded.

    Raises:
        Refused: names the option.
    """
    from sglang.srt import runtime_context

    algorithm = runtime_context.get_spec().speculative_algorithm
    if algorithm not in ALGORITHMS:
        served = f"one of {', '.join(ALGORITHMS)}"
        raise Refused("sglang: speculative_algorithm", served, repr(algorithm))
    for group, name, expected in _EXPECTED:
        got = getattr(getattr(runtime_context, f"get_{group}")(), name)
        if got != expected and not (expected is False and got is None):
            raise Refused(f"sglang: {name}", repr(expected), repr(got))


def check_head(model: Any, rows: int, dtype: Any) -> None:
    """Refuse a draft whose LM head is not plain rows of its own dtype.

    Args:
        model: the draft's. rows: of tokens that it may draft. dtype: of its hidden states.

    Raises:
        Refused: names the class and the attribute.
    """
    from sglang.srt.layers.vocab_parallel_embedding import VocabParallelEmbedding

    name, lm_head = type(model).__name__, model.lm_head
    if name not in DRAFTS:
        raise Refused("sglang: the draft model", f"one of {', '.join(DRAFTS)}", name)
    where = f"sglang: {name}.lm_head"
    if not isinstance(lm_head, VocabParallelEmbedding):
        raise Refused(where, "a ParallelLMHead", type(lm_head).__name__)  # LoRA wraps it
    method = type(lm_head.quant_method).__name__
    if method not in ("UnquantizedEmbeddingMethod", "UnquantizedLinearMethod"):
        raise Refused(f"{where}.quant_method", "none", method)
    if getattr(lm_head, "use_intel_amx_backend", False):
        raise Refused(f"{where}.weight", "rows", "the layout of SGLang's AMX kernels")
    if lm_head.num_embeddings != rows or lm_head.org_vocab_size != rows:
        got = f"{lm_head.org_vocab_size} of {lm_head.num_embeddings}"
        raise Refused(f"{where}.org_vocab_size", f"{rows}, a row for each token", got)
    if lm_head.weight.dtype != dtype:
        raise Refused(f"{where}.weight.dtype", f"the draft's {dtype}", lm_head.weight.dtype)
