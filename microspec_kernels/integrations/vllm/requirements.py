# SPDX-License-Identifier: Apache-2.0
"""Check vLLM's configuration and the draft's LM head against what the plugin supports."""

from typing import Any

from torch import Tensor

from microspec_kernels.integrations.hooks import StoredRows, UnsupportedError, stored_rows

METHODS = ("eagle", "eagle3", "mtp", "draft_model", "dflash", "dspark")
"""Supported speculative_config.method values: drafts that choose by the logits of an LM head."""

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
    method = speculative.draft_sample_method
    if method != "greedy" and not (method == "probabilistic" and vllm_config.use_v2_model_runner):
        expected = "'greedy', or 'probabilistic' with model runner V2"
        raise UnsupportedError(
            "vllm: speculative_config.draft_sample_method", expected, repr(method)
        )
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


def read_head(
    lm_head: Any, logits_processor: Any, hidden: Tensor, slab_dtype: str | None = None
) -> StoredRows:
    """Return this rank's rows of an LM head. Refuse a head whose rows cannot be read.

    Args:
        lm_head: vLLM's layer.
        logits_processor: the model's LogitsProcessor.
        hidden: hidden states [N, D] as the head receives them.
        slab_dtype: dtype of the slab. A slab is quantised from unquantised rows only.

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
    if lm_head.num_embeddings != lm_head.org_vocab_size:
        added = lm_head.num_embeddings - lm_head.org_vocab_size
        raise UnsupportedError(f"{where}.num_added_embeddings", "0", added)
    dtype = hidden.dtype
    processor = type(logits_processor).__name__
    if logits_processor.head_dtype not in (None, dtype):
        got = logits_processor.head_dtype
        raise UnsupportedError(f"vllm: {processor}.head_dtype", str(dtype), got)
    if logits_processor.logits_as_input:
        raise UnsupportedError(f"vllm: {processor}.logits_as_input", "False", True)
    # A positive scale and a soft cap do not change which token is best.
    if not logits_processor.scale > 0:
        raise UnsupportedError(f"vllm: {processor}.scale", "above 0", logits_processor.scale)
    total = min(lm_head.org_vocab_size, logits_processor.org_vocab_size)
    held = lm_head.shard_indices
    rows = min(held.org_vocab_end_index, total) - min(held.org_vocab_start_index, total)
    plain = (UnquantizedEmbeddingMethod, UnquantizedLinearMethod)
    source = lm_head
    if type(lm_head.quant_method) not in plain:
        original = _original(lm_head)
        if original is None or slab_dtype is None:
            try:
                return _stored(lm_head, rows, hidden)
            except Exception as error:  # vLLM's kernel ran, which may fail in any way
                if original is None:
                    expected = "none, or one whose rows can be read"
                    raise UnsupportedError(f"{where}.quant_method", expected, error) from error
        source = original
    if source.weight.dtype != dtype:
        expected = f"the hidden states' {dtype}"
        raise UnsupportedError(f"{where}.weight.dtype", expected, source.weight.dtype)
    return StoredRows(source, source.weight.detach()[:rows])


def _stored(lm_head: Any, rows: int, hidden: Tensor) -> StoredRows:
    apply = lm_head.quant_method.apply
    return stored_rows(
        lm_head, rows, hidden.size(-1), hidden.dtype, lambda states: apply(lm_head, states, None)
    )


def _original(lm_head: Any) -> Any:
    """Return the unquantised head of vLLM's `draft_lm_head_quantization`; None if there is none."""
    try:
        from vllm.model_executor.layers.quantization.online.lm_head import _SOURCES
    except ImportError:  # before vLLM 0.33
        return None
    original, _ = _SOURCES.get(lm_head, (None, None))
    return original
