# SPDX-License-Identifier: Apache-2.0
"""Bad input raises an error that names the argument, before anything runs."""

import dataclasses
import logging
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers

from microspec_kernels._checks import MAX_TOP_K
from microspec_kernels.policy import MICROSPEC, LearnedLists, Policy
from microspec_kernels.speculative import Batch, CausalModel, ModelDraft, generate, load_target

from .models import VOCAB, example, noisy, prompt, tiny

MODEL = example("llama")[0]
FREQUENT = torch.arange(VOCAB)
LISTS = {size: LearnedLists(size) for size in (50, VOCAB)}
BROKEN = noisy(MODEL)
with torch.no_grad():
    BROKEN.lm_head.weight[7] = torch.nan


@pytest.mark.parametrize(
    ("error", "message", "changes"),
    [
        (TypeError, "input_ids: .*got list", {"input_ids": [1, 2]}),
        (TypeError, "input_ids: .*got torch.float32", {"input_ids": torch.ones(3)}),
        (ValueError, r"input_ids: .*got \[0\]", {"input_ids": FREQUENT[:0]}),
        (ValueError, r"input_ids: .*got \[2, 3\]", {"input_ids": FREQUENT[:6].view(2, 3)}),
        (ValueError, r"input_ids: .*\[0, 199\), got 199", {"input_ids": torch.tensor([3, 199])}),
        (ValueError, r"input_ids: .*got -1", {"input_ids": torch.tensor([3, -1])}),
        (ValueError, "max_new_tokens: expected >= 0, got -1", {"max_new_tokens": -1}),
        (TypeError, "max_new_tokens: expected an int, got float", {"max_new_tokens": 1.5}),
        (ValueError, "depth: expected >= 1, got 0", {"depth": 0}),
        (
            ValueError,
            rf"tree_width: expected in \[1, {MAX_TOP_K}\], got {MAX_TOP_K + 1}",
            {"tree_width": MAX_TOP_K + 1},
        ),
        (ValueError, "tree_size: expected >= 1, got 0", {"tree_size": 0}),
        (ValueError, "capacity: expected >= 1, got 0", {"capacity": 0}),
        (ValueError, "num_groups: expected >= 1, got 0", {"num_groups": 0}),
        pytest.param(
            ValueError,
            "pinned: expected at most capacity = 8 tokens, got 9",
            {"capacity": 8, "learn": False, "policy": Policy(MICROSPEC, pinned=FREQUENT[:9])},
            id="pinned",  # a policy's own text contains addresses, which differ between processes
        ),
        pytest.param(
            ValueError,
            "learn: expected False beside the 9 pinned tokens",
            {"policy": Policy(MICROSPEC, pinned=FREQUENT[:9])},
            id="learned and pinned",
        ),
        *(
            pytest.param(ValueError, message, changes, id=message)
            for message, changes in (
                ("learn: expected head='sparse'", {"head": "dense", "learn": LISTS[50]}),
                (r"expected \(V, G\) = \(50, 1\), got \(199, 1\)", {"learn": LISTS[50]}),
                ("learn: expected the lists of", {"learn": LISTS[VOCAB], "draft": BROKEN}),
            )
        ),
        (ValueError, "frequent_tokens: head='static'", {"head": "static"}),
        (TypeError, "frequent_tokens: .*got str", {"frequent_tokens": ["a"]}),
        (TypeError, "frequent_tokens: .*float32", {"frequent_tokens": torch.ones(2)}),
        (
            ValueError,
            "frequent_tokens: .*got 3 2 times",
            {"frequent_tokens": torch.tensor([3, 3])},
        ),
        (
            ValueError,
            "frequent_tokens: .*got 199 at position 1",
            {"frequent_tokens": torch.tensor([3, 199])},
        ),
        (ValueError, "head: expected 'dense'", {"head": "fast"}),
        (TypeError, "head: expected a name or a Head, got int", {"head": 3}),
        (ValueError, "mode", {"mode": "folded"}),
        (TypeError, "expected a Hugging Face causal LM, got str", {"target": "llama"}),
        (TypeError, "expected a Hugging Face causal LM, got str", {"draft": "eagle"}),
        (ValueError, "draft: .*vocabulary of 199, got 99", {"draft": tiny(vocab_size=99)}),
    ],
    ids=str,
)
def test_refused(error: type[Exception], message: str, changes: dict[str, Any]) -> None:
    arguments = {
        "target": MODEL, "draft": MODEL, "input_ids": prompt(5), "max_new_tokens": 4, **changes
    }  # fmt: skip
    with pytest.raises(error, match=message):
        generate(**arguments)


def test_a_draft_elsewhere_is_refused() -> None:
    draft = ModelDraft(tiny())
    elsewhere = draft.lm_head.weight.to("meta")
    draft.lm_head = dataclasses.replace(draft.lm_head, weight=elsewhere)
    with pytest.raises(ValueError, match="draft: expected device cpu, got meta"):
        generate(MODEL, draft, prompt(5), 4)


@pytest.mark.parametrize(
    ("error", "message", "changes"),
    [
        (TypeError, "input_ids: .*got list", {"input_ids": [1, 2]}),
        (ValueError, r"input_ids: .*\[0, 199\), got 199", {"input_ids": torch.tensor([199])}),
        (ValueError, "max_new_tokens: expected >= 0, got -1", {"max_new_tokens": -1}),
        (ValueError, r"seed: expected in \[0, 2\^64\), got -1", {"seed": -1}),
        (ValueError, r"seed: expected in \[0, 2\^64\), got 1844", {"seed": 2**64}),
        (TypeError, "seed: expected an int, got float", {"seed": 1.0}),
    ],
    ids=str,
)
def test_a_refused_text_changes_nothing(
    error: type[Exception], message: str, changes: dict[str, Any]
) -> None:
    batch = Batch(MODEL, MODEL, num_groups=2)
    first = batch.join(prompt(5), 9)
    with pytest.raises(error, match=message):
        batch.join(**{"input_ids": prompt(5), "max_new_tokens": 4, **changes})
    assert batch.requests == [first]
    second = batch.join(prompt(7), 9)
    while batch.requests:
        batch.step()
    for request, length in ((first, 5), (second, 7)):
        assert request.tokens == generate(MODEL, MODEL, prompt(length), 9).tokens.tolist()


def test_more_texts_than_groups() -> None:
    batch = Batch(MODEL, MODEL, num_groups=2)
    for length in (4, 5):
        batch.join(prompt(length), 9)
    with pytest.raises(
        ValueError, match="num_groups: expected at most 2 requests, one a group, got 3"
    ):
        batch.join(prompt(6), 9)
    assert len(batch.requests) == 2


def test_models_that_cannot_be_given_a_tree() -> None:
    with pytest.raises(ValueError, match=r"model_type of llama, .* got 'gpt2'"):
        config = SimpleNamespace(model_type="gpt2")
        CausalModel(SimpleNamespace(config=config, get_output_embeddings=None))
    model = tiny()
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match=r"'sdpa' or 'eager'.* got 'flash_attention_2'"):
        CausalModel(model)


def test_a_rotary_embedding_that_depends_on_the_length() -> None:
    """The embedding is ordinary within its original length.

    Beyond it, a tree would change its phase.
    """
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    model = tiny(rope_parameters=rope, max_position_embeddings=32)
    assert len(generate(model, model, prompt(20), 6, depth=6).tokens) == 6
    with pytest.raises(ValueError, match=r"max_new_tokens: .* within 32, got 33"):
        generate(model, model, prompt(20), 7, depth=6)


RULES: list[tuple[str, Any]] = [
    ("repetition_penalty", 1.1),
    ("no_repeat_ngram_size", 1),
    ("encoder_no_repeat_ngram_size", 2),
    ("encoder_repetition_penalty", 0.9),
    ("suppress_tokens", [3]),
    ("begin_suppress_tokens", [0]),
    ("bad_words_ids", [[3, 4]]),
    ("min_length", 30),
    ("min_new_tokens", 1),
    ("forced_bos_token_id", 0),
    ("forced_eos_token_id", 0),
    ("sequence_bias", [[[3], 1.0]]),
    ("exponential_decay_length_penalty", (3, 1.1)),
    ("guidance_scale", 2.0),
    ("stop_strings", ["stop"]),
    ("max_time", 0.5),
    ("token_healing", True),
    ("watermarking_config", {"bias": 2.0}),
    ("num_beams", 2),
    ("penalty_alpha", 0.6),
    ("typical_p", 0.5),
    ("a_rule_of_a_later_version", 7),
]


@pytest.mark.parametrize(("name", "value"), RULES, ids=str)
def test_rules_that_are_not_applied_are_named(
    name: str, value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny()
    setattr(model.generation_config, name, value)
    with caplog.at_level(logging.WARNING):
        CausalModel(model)
    messages = [record.getMessage() for record in caplog.records]
    assert messages == [f"generation config: {name}={value} is not applied"]


def test_what_changes_no_token_is_not_named(caplog: pytest.LogCaptureFixture) -> None:
    """Neutral values, rules with an argument here, and settings for outputs, lengths and caches."""
    settings: dict[str, Any] = {
        "repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "min_length": 0, "num_beams": 1,
        "suppress_tokens": [], "guidance_scale": 1, "typical_p": 1.0, "epsilon_cutoff": 0.0,
        "forced_eos_token_id": None, "do_sample": True, "temperature": 0.6, "top_k": 20,
        "top_p": 0.9, "eos_token_id": [3, 4], "pad_token_id": 0, "max_length": 4096,
        "cache_implementation": "static", "num_assistant_tokens": 5, "length_penalty": 2.0,
        "renormalize_logits": True,
    }  # fmt: skip
    for config in (transformers.GenerationConfig(), transformers.GenerationConfig(**settings)):
        model = tiny()
        model.generation_config = config
        with caplog.at_level(logging.WARNING):
            CausalModel(model)
    assert not [r for r in caplog.records if r.name.startswith("microspec_kernels")]


def test_without_transformers_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"microspec-kernels\[speculative\]"):
        load_target("anything")
