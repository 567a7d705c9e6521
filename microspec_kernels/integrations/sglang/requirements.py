# SPDX-License-Identifier: Apache-2.0
"""Check SGLang's configuration and the draft's LM head against what the plugin supports."""

import operator
from typing import Any

from microspec_kernels.engine import SWITCH, Settings
from microspec_kernels.integrations.hooks import UnsupportedError

ALGORITHMS = ("EAGLE", "EAGLE3")
DRAFTS = ("LlamaForCausalLMEagle", "LlamaForCausalLMEagle3")
"""The tested draft models: EAGLE, and EAGLE-3 for targets of every kind."""

_UNTESTED = "the plugin was not tested with it"
_RANKS = "a rank would see a part of the requests or of the layers"
_EXPECTED: tuple[tuple[str, object, str], ...] = (
    ("spec.speculative_use_rejection_sampling", False, "it needs probabilities over all of V"),
    ("spec.speculative_token_map", None, "the active vocabulary takes the place of a fixed one"),
    ("spec.speculative_adaptive", False, _UNTESTED),
    ("spec.enable_multi_layer_eagle", False, _UNTESTED),
    ("schedule.enable_mixed_chunk", False, _UNTESTED),
    ("lora.enable_lora", False, _UNTESTED),
    ("exec.features.enable_memory_saver", False, _UNTESTED),
    ("parallel.attn_dp_size", 1, _RANKS),
    ("parallel.attn_cp_size", 1, _RANKS),
    ("parallel.pp_size", 1, _RANKS),
    ("disagg.disaggregation_mode", "null", "the other half would have to know this one's slots"),
)
"""Options by the groups of SGLang's runtime context, with the required value and the reason."""


def check_settings(settings: Settings) -> None:
    """Refuse settings that the SGLang plugin does not support.

    Raises:
        UnsupportedError: names the setting.
    """
    if settings.vocabulary != "shared":
        expected = "'shared', because SGLang has one map for all drafted tokens"
        raise UnsupportedError(f"sglang: {SWITCH}: vocabulary", expected, repr(settings.vocabulary))


def check_config() -> None:
    """Refuse an unsupported configuration. Call before anything is loaded.

    Raises:
        UnsupportedError: names the option.
    """
    from sglang.srt import runtime_context

    algorithm = runtime_context.get_spec().speculative_algorithm
    if algorithm not in ALGORITHMS:
        served = f"one of {', '.join(ALGORITHMS)}"
        raise UnsupportedError("sglang: speculative_algorithm", served, repr(algorithm))
    for path, expected, why in _EXPECTED:
        group, _, option = path.partition(".")
        got = operator.attrgetter(option)(getattr(runtime_context, f"get_{group}")())
        if got != expected and not (expected is False and got is None):
            name = path.rpartition(".")[2]
            raise UnsupportedError(f"sglang: {name}", f"{expected!r}, as {why}", repr(got))


def check_head(model: Any, lm_head_rows: int, dtype: Any) -> None:
    """Refuse a draft whose LM head is not plain rows of its own dtype.

    Args:
        model: the draft model.
        lm_head_rows: number of tokens that it may draft.
        dtype: dtype of its hidden states.

    Raises:
        UnsupportedError: names the class and the attribute.
    """
    from sglang.srt.layers.vocab_parallel_embedding import VocabParallelEmbedding

    name, lm_head = type(model).__name__, model.lm_head
    if name not in DRAFTS:
        raise UnsupportedError("sglang: the draft model", f"one of {', '.join(DRAFTS)}", name)
    where = f"sglang: {name}.lm_head"
    if not isinstance(lm_head, VocabParallelEmbedding):
        raise UnsupportedError(where, "a ParallelLMHead", type(lm_head).__name__)  # LoRA wraps it
    method = type(lm_head.quant_method).__name__
    if method not in ("UnquantizedEmbeddingMethod", "UnquantizedLinearMethod"):
        raise UnsupportedError(f"{where}.quant_method", "none", method)
    if getattr(lm_head, "use_intel_amx_backend", False):
        raise UnsupportedError(f"{where}.weight", "rows", "the layout of SGLang's AMX kernels")
    if lm_head.num_embeddings != lm_head_rows or lm_head.org_vocab_size != lm_head_rows:
        got = f"{lm_head.org_vocab_size} of {lm_head.num_embeddings}"
        raise UnsupportedError(
            f"{where}.org_vocab_size", f"{lm_head_rows}, a row for each token", got
        )
    if lm_head.weight.dtype != dtype:
        raise UnsupportedError(
            f"{where}.weight.dtype", f"the draft's {dtype}", lm_head.weight.dtype
        )
