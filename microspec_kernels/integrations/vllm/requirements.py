# SPDX-License-Identifier: Apache-2.0
"""Check vLLM's configuration and the draft's LM head against what the plugin supports."""

from typing import Any

from microspec_kernels.integrations.hooks import UnsupportedError

METHODS = ("eagle", "eagle3", "mtp", "draft_model", "dflash")
"""Supported speculative_config.method values: drafts whose tokens are the best of an LM head."""

_OTHER_CHOICE = (
    *("DFlash2DraftModel", "DFlash2BeamDraftModel", "LiLiCorrDraftModel"),
    *("Qwen3XPressModel", "DFlashQwen3XPressModel"),
)
"""Architectures of the method "dflash" that choose among the LM head's candidates afterwards."""

_EXPECTED: tuple[tuple[str, Any], ...] = (
    # These drafts have another LM head or call it differently.
    ("speculative_config.use_gemma4_mtp()", False),
    ("speculative_config.use_heterogeneous_vocab", False),
    # These need the draft's logits over all of V.
    ("speculative_config.draft_sample_method", "greedy"),
    ("speculative_config.enable_adaptive_verification", False),
    ("watermark_config", None),
    # A rank would see only part of the requests, of their tokens or of the layers.
    ("parallel_config.enable_batch_sharded_sampling", False),
    ("parallel_config.pipeline_parallel_size", 1),
    ("parallel_config.decode_context_parallel_size", 1),
    ("parallel_config.prefill_context_parallel_size", 1),
    # Sleep mode discards the vocabulary with the weights and cannot load it again.
    ("model_config.enable_sleep_mode", False),
)


def check_config(vllm_config: Any) -> None:
    """Refuse an unsupported configuration. Call before anything is patched.

    Raises:
        UnsupportedError: names the option.
    """
    speculative = vllm_config.speculative_config
    if speculative is None:
        raise UnsupportedError("vllm: speculative_config", "a configuration with a draft", None)
    if speculative.method not in METHODS:
        expected = f"one of {', '.join(METHODS)}"
        raise UnsupportedError(
            "vllm: speculative_config.method", expected, repr(speculative.method)
        )
    architectures = speculative.draft_model_config.architectures or ()
    for architecture in _OTHER_CHOICE:
        if architecture in architectures:
            expected = "a draft whose tokens are the best of its LM head"
            raise UnsupportedError("vllm: the draft model", expected, architecture)
    for path, expected in _EXPECTED:
        got: Any = vllm_config
        for name in path.removesuffix("()").split("."):
            if not hasattr(got, name):
                raise UnsupportedError(
                    f"vllm: {path}", repr(expected), "no such option in this version"
                )
            got = getattr(got, name)
        if path.endswith("()"):
            got = got()
        if got != expected and not (expected is False and got is None):
            raise UnsupportedError(f"vllm: {path}", repr(expected), repr(got))


def check_head(lm_head: Any, logits_processor: Any, hidden_dtype: Any) -> None:
    """Refuse an LM head that is not plain rows of the hidden states' dtype.

    Args:
        lm_head: vLLM's layer.
        logits_processor: the model's LogitsProcessor.
        hidden_dtype: dtype of the hidden states that the head receives.

    Raises:
        UnsupportedError: names the class and the attribute.
    """
    from vllm.model_executor.layers.linear import UnquantizedLinearMethod
    from vllm.model_executor.layers.vocab_parallel_embedding import (
        UnquantizedEmbeddingMethod,
        VocabParallelEmbedding,
    )

    where = f"vllm: the draft's LM head: {type(lm_head).__name__}"
    if not isinstance(lm_head, VocabParallelEmbedding):
        raise UnsupportedError(where, "a ParallelLMHead", type(lm_head).__name__)  # LoRA wraps it
    method = lm_head.quant_method
    if type(method) not in (UnquantizedEmbeddingMethod, UnquantizedLinearMethod):
        raise UnsupportedError(f"{where}.quant_method", "none", type(method).__name__)
    if lm_head.num_embeddings != lm_head.org_vocab_size:
        added = lm_head.num_embeddings - lm_head.org_vocab_size
        raise UnsupportedError(f"{where}.num_added_embeddings", "0", added)
    dtype = lm_head.weight.dtype
    if dtype != hidden_dtype:
        raise UnsupportedError(f"{where}.weight.dtype", f"the hidden states' {hidden_dtype}", dtype)
    processor = type(logits_processor).__name__
    if logits_processor.head_dtype not in (None, dtype):
        raise UnsupportedError(f"vllm: {processor}.head_dtype", dtype, logits_processor.head_dtype)
    if logits_processor.logits_as_input:
        raise UnsupportedError(f"vllm: {processor}.logits_as_input", "False", True)
    # A positive scale and a soft cap do not change which token is best.
    if not logits_processor.scale > 0:
        raise UnsupportedError(f"vllm: {processor}.scale", "above 0", logits_processor.scale)
