# SPDX-License-Identifier: Apache-2.0
"""Targets with logits beyond an LM head's rows, or with layers of several kinds."""

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers

from microspec_kernels.speculative import CausalModel, generate, load_target
from microspec_kernels.speculative.models.supported import (
    MIXED,
    MODEL_TYPES,
    SINCE_TRANSFORMERS_5,
    WINDOWED,
)
from microspec_kernels.speculative.models.target import cache_argument

from .models import VOCAB, eagle, greedy, head_bias, noisy, prompt, tiny

LAYERS = ["full_attention", "sliding_attention"]
WINDOW: dict[str, Any] = {"sliding_window": 9, "layer_types": LAYERS}
# Some settings are the defaults of these kinds, scaled down to matter at this size.
TARGETS: dict[str, dict[str, Any]] = {
    "gemma": {},
    "gemma2": {
        "query_pre_attn_scalar": 8, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0,
        **WINDOW,
    },
    "gemma3_text": {"query_pre_attn_scalar": 8, "final_logit_softcapping": 4.0, **WINDOW},
    "granite": {
        "logits_scaling": 6.0, "embedding_multiplier": 12.0, "residual_multiplier": 0.7,
        "attention_multiplier": 0.2,
    },
    "cohere": {"logit_scale": 0.0625},
    "cohere2": {"logit_scale": 0.25, **WINDOW},
}  # fmt: skip
KINDS = [*TARGETS, "llama"]
NEW = int(transformers.__version__.partition(".")[0]) >= 5
KNOWN = [  # by this version of transformers
    kind
    for kind in MODEL_TYPES
    if kind in transformers.CONFIG_MAPPING and (NEW or kind not in SINCE_TRANSFORMERS_5)
]
EXPERTS = {
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 24, "shared_expert_intermediate_size": 24, "n_group": 2,
    "topk_group": 1, "first_k_dense_replace": 1,
}  # fmt: skip
SLIDING = {"use_sliding_window": True, "max_window_layers": 1}  # Qwen's fields
FREQUENT = torch.randperm(VOCAB, generator=torch.Generator().manual_seed(7))


def few_experts(kind: str) -> dict[str, Any]:
    """Return the fields that make a type's experts few and small."""
    fields = vars(transformers.AutoConfig.for_model(kind))
    return {field: value for field, value in EXPERTS.items() if field in fields}


def target_of(kind: str, **changes: Any) -> Any:
    """Make a tiny model with random norms. A tied head must not just repeat the input token."""
    model = tiny(kind, **{"initializer_range": 0.3, **TARGETS.get(kind, {}), **changes})
    values = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight += 0.2 * torch.randn(weight.shape, generator=values)
        if model.config.tie_word_embeddings:
            model.get_input_embeddings().weight *= 0.05
    return model


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_lm_head_gives_the_models_logits(kind: str, tied: bool) -> None:
    model = head_bias(target_of(kind, tie_word_embeddings=tied))
    target, text = CausalModel(model), prompt(24)
    with torch.no_grad():
        expected = model(text).logits
        hidden = target.prefill(text[0], target.new_cache())[0][None]
        logits = target.logits(hidden)
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
        some = torch.tensor([7, 3, 150])
        torch.testing.assert_close(target.lm_head.only(some).logits(hidden), logits[..., some])
    plain = hidden @ target.lm_head.weight.T + target.lm_head.bias
    assert torch.equal(plain, logits) is (kind in ("llama", "gemma"))


@pytest.mark.parametrize("kind", KNOWN)
def test_the_cache_goes_by_the_name_that_is_not_deprecated(kind: str) -> None:
    target = CausalModel(tiny(kind, **few_experts(kind)))
    cache = target.new_cache()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error")
        target.prefill(prompt(5)[0], cache)
    assert cache.get_seq_length() == 5


QUICK = [kind for kind in ("gpt_oss", "mixtral", "phi3") if kind in KNOWN]
SLOW = [pytest.param(kind, marks=pytest.mark.slow) for kind in KNOWN if kind not in QUICK]


@pytest.mark.parametrize("kind", [*QUICK, *SLOW])
def test_every_type_equals_transformers(kind: str) -> None:
    """Where the type has windows, one layer has a short one, or both have."""
    changes = few_experts(kind)
    if kind in WINDOWED:
        changes |= {"sliding_window": 9, **SLIDING}
    elif kind in MIXED:
        changes |= {**WINDOW, **SLIDING}
    model, text = target_of(kind, **changes), prompt(24)
    truth = greedy(model, text, 20)
    assert len(set(truth.tolist())) > 4, "a degenerate example tests nothing"
    if kind in (*WINDOWED, *MIXED):
        unwindowed = greedy(target_of(kind, **{**changes, "sliding_window": 99}), text, 20)
        assert unwindowed.tolist() != truth.tolist(), "the window does not matter"
    target = CausalModel(model)
    for draft in (noisy(model, 0.01), eagle(target)):
        result = generate(target, draft, text, 20, capacity=VOCAB, depth=4, tree_width=4)
        assert result.tokens.tolist() == truth.tolist()


@pytest.mark.parametrize("kind", SINCE_TRANSFORMERS_5)
def test_a_type_that_needs_a_newer_transformers_is_refused(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = SimpleNamespace(model_type=kind)
    model = SimpleNamespace(config=config, get_output_embeddings=None)
    monkeypatch.setattr("transformers.__version__", "4.57.6")
    with pytest.raises(ValueError, match=f"transformers 5 or later for {kind}, got 4.57.6"):
        CausalModel(model)


def test_a_model_without_a_cache_is_refused() -> None:
    with pytest.raises(TypeError, match=r"argument of Linear.forward .* Cache, got \[\]"):
        cache_argument(torch.nn.Linear(1, 1))


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_transformers(kind: str, tied: bool) -> None:
    model, text = target_of(kind, tie_word_embeddings=tied), prompt(24)
    truth = greedy(model, text, 24)
    assert len(set(truth.tolist())) > 6, "a degenerate example tests nothing"
    target = CausalModel(model)
    for draft in (noisy(model, 0.01), eagle(target)):
        for head in ("dense", "static", "sparse"):
            result = generate(
                target, draft, text, 24, head=head, capacity=VOCAB, frequent_tokens=FREQUENT,
                depth=4, tree_width=4,
            )  # fmt: skip
            assert result.tokens.tolist() == truth.tolist(), head


@pytest.mark.parametrize("kind", TARGETS)
def test_a_perfect_copy_reaches_the_greatest_acceptance(kind: str) -> None:
    """A draft of the same kind has the same windows and the same caps."""
    model, text = target_of(kind), prompt(24)
    result = generate(model, model, text, 21, head="dense", depth=4, tree_width=1, tree_size=4)
    assert result.tokens.tolist() == greedy(model, text, 21).tolist()
    assert result.acceptance_lengths == [5] * 4


@pytest.mark.parametrize("kind", ["gemma2", "gemma3_text", "cohere2"])
def test_the_window_matters_in_these_tests(kind: str) -> None:
    text = prompt(24)
    without = greedy(target_of(kind, sliding_window=99), text, 24).tolist()
    assert without != greedy(target_of(kind), text, 24).tolist()


def test_attention_that_leaves_out_a_soft_cap_is_refused(tmp_path: Path) -> None:
    model = target_of("gemma2")
    model.save_pretrained(tmp_path)
    assert load_target(tmp_path).config._attn_implementation == "eager"
    model.config._attn_implementation = "sdpa"
    with pytest.raises(
        ValueError, match=r"'eager', the only one that applies attn_logit_soft.* 'sdpa'"
    ):
        CausalModel(model)
    uncapped = tiny("gemma3_text")
    assert uncapped.config._attn_implementation == "sdpa"
    assert CausalModel(uncapped).lm_head.softcap == 0


def test_a_target_with_eyes_is_refused() -> None:
    """Gemma 3 from 4B up sees images; its language model alone is of the kind gemma3_text."""
    model = SimpleNamespace(config=SimpleNamespace(model_type="gemma3"), get_output_embeddings=None)
    with pytest.raises(ValueError, match=r"gemma3_text.*, got 'gemma3'"):
        CausalModel(model)


def test_one_of_two_rotary_embeddings_depends_on_the_length() -> None:
    model = target_of("gemma3_text")
    assert CausalModel(model).longest is None
    dynamic = {"rope_type": "dynamic", "factor": 2.0}
    if hasattr(model.config, "rope_parameters"):
        model.config.rope_parameters["full_attention"] = dynamic
    else:  # transformers 4
        model.config.rope_scaling = dynamic
    assert CausalModel(model).longest == 512
