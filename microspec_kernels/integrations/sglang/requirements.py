# SPDX-License-Identifier: Apache-2.0
"""Check SGLang's configuration and the draft's LM head against what the plugin supports."""

import operator
from typing import Any

import torch
from torch import Tensor

from microspec_kernels.engine import SWITCH, Settings
from microspec_kernels.integrations.hooks import StoredRows, UnsupportedError, stored_rows

ALGORITHMS = ("EAGLE", "EAGLE3")

_UNQUANTISED = ("UnquantizedEmbeddingMethod", "UnquantizedLinearMethod")
_UNTESTED = "the plugin was not tested with it"
_RANKS = "a rank would see a part of the requests or of the layers"
_EXPECTED: tuple[tuple[str, object, str], ...] = (
    ("spec.speculative_token_map", None, "the active vocabulary takes the place of a fixed one"),
    ("spec.speculative_adaptive", False, _UNTESTED),
    ("schedule.enable_mixed_chunk", False, _UNTESTED),
    ("lora.enable_lora", False, _UNTESTED),
    ("exec.features.enable_memory_saver", False, _UNTESTED),
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


def is_multi_layer() -> bool:
    """Return whether a draft has a model for each of its steps."""
    from sglang.srt.runtime_context import get_spec

    return bool(get_spec().enable_multi_layer_eagle)


def read_head(model: Any, lm_head_rows: int, dtype: torch.dtype) -> StoredRows:
    """Return this rank's rows of a draft's LM head. Refuse a head whose rows cannot be read.

    Any model is served that hands its `lm_head` to a LogitsProcessor of SGLang's own, as the EAGLE
    and NextN drafts do.

    Args:
        model: the draft model.
        lm_head_rows: number of tokens that it may draft.
        dtype: dtype of its hidden states.

    Raises:
        UnsupportedError: names the class and the attribute.
    """
    from sglang.srt.layers.logits_processor import LogitsProcessor
    from sglang.srt.layers.vocab_parallel_embedding import VocabParallelEmbedding

    name = type(model).__name__
    lm_head, processor = (getattr(model, each, None) for each in ("lm_head", "logits_processor"))
    if type(processor) is not LogitsProcessor:
        got = type(processor).__name__
        raise UnsupportedError(f"sglang: {name}.logits_processor", "a LogitsProcessor", got)
    where = f"sglang: {name}.lm_head"
    if not isinstance(lm_head, VocabParallelEmbedding):
        raise UnsupportedError(where, "a ParallelLMHead", type(lm_head).__name__)  # LoRA wraps it
    if getattr(lm_head, "use_intel_amx_backend", False):
        raise UnsupportedError(f"{where}.weight", "rows", "the layout of SGLang's AMX kernels")
    if lm_head.num_embeddings != lm_head_rows or lm_head.org_vocab_size != lm_head_rows:
        got = f"{lm_head.org_vocab_size} of {lm_head.num_embeddings}"
        raise UnsupportedError(
            f"{where}.org_vocab_size", f"{lm_head_rows}, a row for each token", got
        )
    _check_ranks(where, lm_head, processor)
    shards = lm_head.shard_indices
    rows = shards.org_vocab_end_index - shards.org_vocab_start_index
    if type(lm_head.quant_method).__name__ not in _UNQUANTISED:
        return _stored(where, lm_head, processor, rows, dtype)
    if lm_head.weight.dtype != dtype:
        raise UnsupportedError(
            f"{where}.weight.dtype", f"the draft's {dtype}", lm_head.weight.dtype
        )
    return StoredRows(lm_head, lm_head.weight.detach()[:rows])


def _check_ranks(where: str, lm_head: Any, processor: Any) -> None:
    """Refuse a head that is shared by ranks with other requests.

    With data-parallel attention these ranks would have to agree on a vocabulary, by a collective
    that a rank without requests does not join.
    """
    from sglang.srt.runtime_context import get_parallel

    parallel = get_parallel()
    if parallel.attn_dp_size == 1:
        return
    if not processor.use_attn_tp_group:
        expected = "True with data-parallel attention, so that each rank drafts for its requests"
        raise UnsupportedError("sglang: enable_dp_lm_head", expected, False)
    if lm_head.tp_size != parallel.attn_tp_size:
        expected = f"attn_tp_size, {parallel.attn_tp_size}"
        raise UnsupportedError(f"{where}.tp_size", expected, lm_head.tp_size)


def _stored(where: str, lm_head: Any, processor: Any, rows: int, dtype: torch.dtype) -> StoredRows:
    def apply(hidden: Tensor) -> Tensor:
        logits: Tensor = processor._compute_lm_head(hidden, lm_head)
        return logits

    try:
        return stored_rows(lm_head, rows, lm_head.embedding_dim, dtype, apply)
    except Exception as error:  # SGLang's kernel ran, which may fail in any way
        expected = "none, or one whose rows can be read"
        raise UnsupportedError(f"{where}.quant_method", expected, error) from error
