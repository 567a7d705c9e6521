# SPDX-License-Identifier: Apache-2.0
"""vLLM's plugin raises an error that names each unsupported option, and accepts supported ones."""

import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from microspec_kernels.integrations.hooks import UnsupportedError
from microspec_kernels.integrations.vllm.requirements import METHODS, check_config, read_head

from .fake_vllm import (
    LogitsProcessor,
    UnquantizedLinearMethod,
    VocabParallelEmbedding,
    config,
    installed,
)


def change(owner: Any, path: str, value: Any) -> None:
    *folders, name = path.split(".")
    for folder in folders:
        owner = getattr(owner, folder)
    setattr(owner, name, value)


@pytest.mark.parametrize("method", METHODS)
def test_served(method: str) -> None:
    served = config()
    served.speculative_config.method = method
    check_config(served)


def test_no_drafter() -> None:
    none = config()
    none.speculative_config = None
    with pytest.raises(
        UnsupportedError,
        match="vllm: speculative_config: expected a configuration with a draft, got",
    ):
        check_config(none)


@pytest.mark.parametrize("method", ["ngram", "suffix", "medusa", None])
def test_methods_without_such_a_head(method: str | None) -> None:
    other = config()
    other.speculative_config.method = method
    expected = f"speculative_config.method: expected one of eagle, .*, got {method!r}"
    with pytest.raises(UnsupportedError, match=expected):
        check_config(other)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("speculative_config.use_gemma4_mtp", lambda: True),
        ("speculative_config.use_heterogeneous_vocab", True),
        ("speculative_config.draft_sample_method", "best of two"),
        ("speculative_config.enable_adaptive_verification", True),
        ("watermark_config", SimpleNamespace()),
        ("parallel_config.enable_batch_sharded_sampling", True),
        ("parallel_config.pipeline_parallel_size", 2),
        ("parallel_config.decode_context_parallel_size", 2),
        ("parallel_config.prefill_context_parallel_size", 2),
        ("model_config.enable_sleep_mode", True),
    ],
)
def test_each_option(path: str, value: Any) -> None:
    other = config()
    change(other, path, value)
    with pytest.raises(UnsupportedError, match=f"vllm: {re.escape(path)}"):
        check_config(other)


def test_an_option_that_has_gone_is_not_taken_for_its_default() -> None:
    other = config()
    del other.speculative_config.use_heterogeneous_vocab
    with pytest.raises(
        UnsupportedError, match=r"use_heterogeneous_vocab: expected False, got no such option"
    ):
        check_config(other)


@pytest.mark.parametrize("name", ["DFlash2DraftModel", "LiLiCorrDraftModel", "Qwen3XPressModel"])
def test_drafts_that_choose_among_the_heads_candidates(name: str) -> None:
    other = config()
    other.speculative_config.method = "dflash"
    other.speculative_config.draft_model_config.architectures = [name]
    with pytest.raises(UnsupportedError, match=f"the draft model: expected .* got {name}"):
        check_config(other)


def test_a_draft_without_named_architectures() -> None:
    other = config()
    other.speculative_config.draft_model_config.architectures = None
    check_config(other)


def plain() -> tuple[Any, Any]:
    return VocabParallelEmbedding(torch.randn(64, 8), 60), LogitsProcessor(60)


def test_plain_heads_are_served() -> None:
    with installed():
        lm_head, processor = plain()
        read_head(lm_head, processor, torch.zeros(1, 8))
        lm_head.quant_method = UnquantizedLinearMethod()
        processor.head_dtype, processor.scale = torch.float32, 0.5
        read_head(lm_head, processor, torch.zeros(1, 8))


def fp8(lm_head: Any, processor: Any) -> None:
    lm_head.quant_method = type("Fp8LinearMethod", (UnquantizedLinearMethod,), {})()


def added(lm_head: Any, processor: Any) -> None:
    lm_head.num_embeddings += 4


def half(lm_head: Any, processor: Any) -> None:
    lm_head.weight.data = lm_head.weight.data.half()


def head_dtype(lm_head: Any, processor: Any) -> None:
    processor.head_dtype = torch.float64


def logits_as_input(lm_head: Any, processor: Any) -> None:
    processor.logits_as_input = True


def no_scale(lm_head: Any, processor: Any) -> None:
    processor.scale = 0.0


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (
            fp8,
            "quant_method: expected none, or .* 'Fp8LinearMethod' .* 'apply'",
        ),
        (added, "VocabParallelEmbedding.num_added_embeddings: expected 0, got 4"),
        (half, "VocabParallelEmbedding.weight.dtype: expected .* torch.float32, got torch.float16"),
        (head_dtype, "LogitsProcessor.head_dtype: expected torch.float32, got torch.float64"),
        (logits_as_input, "LogitsProcessor.logits_as_input: expected False, got True"),
        (no_scale, "LogitsProcessor.scale: expected above 0, got 0.0"),
    ],
)
def test_each_head(spoil: Any, expected: str) -> None:
    with installed():
        lm_head, processor = plain()
        spoil(lm_head, processor)
        with pytest.raises(UnsupportedError, match=expected):
            read_head(lm_head, processor, torch.zeros(1, 8))


def test_a_head_that_is_wrapped() -> None:
    with installed():
        lm_head, processor = plain()
        wrapped = torch.nn.Sequential(lm_head)
        with pytest.raises(UnsupportedError, match="expected a ParallelLMHead, got Sequential"):
            read_head(wrapped, processor, torch.zeros(1, 8))


def test_drafts_that_are_drawn() -> None:
    other = config()
    other.speculative_config.draft_sample_method = "probabilistic"
    check_config(other)
    other.use_v2_model_runner = False
    with pytest.raises(UnsupportedError, match="'probabilistic' with model runner V2, got 'prob"):
        check_config(other)
