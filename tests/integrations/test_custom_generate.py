# SPDX-License-Identifier: Apache-2.0
"""The reference loop as `model.generate(custom_generate=…)`."""

import warnings
from typing import Any

import pytest
import torch
from speculative.models import VOCAB, eagle, prompt, tiny
from torch import Tensor
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessorList,
    MaxTimeCriteria,
    MinPLogitsWarper,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
)
from transformers.generation import GenerateDecoderOnlyOutput

from microspec_kernels.integrations.transformers import microspec_generate
from microspec_kernels.speculative import CausalModel, Sampling, generate
from microspec_kernels.speculative.models.target import cache_argument

from .conftest import NEW

Texts = tuple[Tensor, Tensor]
SHAPE: dict[str, Any] = {"depth": 3, "tree_width": 4, "tree_size": 12, "capacity": 64}


@pytest.mark.parametrize("head", ["dense", "sparse"])
def test_greedy_equals_the_target_alone(
    target: Any, assistant: Any, text: Texts, head: str
) -> None:
    custom = microspec_generate(assistant, head=head, **SHAPE)
    out = target.generate(text[0], custom_generate=custom, max_new_tokens=NEW, do_sample=False)
    assert out.dtype == torch.int64 and torch.equal(out, text[1])


def test_an_eagle_draft(target: Any, text: Texts) -> None:
    custom = microspec_generate(eagle(CausalModel(target)), **SHAPE)
    out = target.generate(text[0], custom_generate=custom, max_new_tokens=NEW, do_sample=False)
    assert torch.equal(out, text[1])


def test_a_model_output_with_stats(target: Any, assistant: Any, text: Texts) -> None:
    config = GenerationConfig(max_length=24 + NEW, return_dict_in_generate=True)
    custom = microspec_generate(assistant, **SHAPE)
    out = target.generate(text[0], generation_config=config, custom_generate=custom)
    assert isinstance(out, GenerateDecoderOnlyOutput) and torch.equal(out.sequences, text[1])
    (stats,) = out.stats
    assert 1 + sum(stats.acceptance_lengths) == NEW and stats.tau > 1.5


@pytest.mark.parametrize("many", [False, True])
def test_the_ends_are_the_calls(target: Any, assistant: Any, text: Texts, many: bool) -> None:
    """The call's end of text counts, not that of the model's generation config."""
    new = text[1][0, 24:].tolist()
    end = next(place for place in range(6, NEW) if new[place] not in new[:place])
    eos = [VOCAB - 1, new[end]] if many else new[end]
    options = {"max_new_tokens": NEW, "eos_token_id": eos, "do_sample": False}
    custom = microspec_generate(assistant, **SHAPE)
    out = target.generate(text[0], custom_generate=custom, **options)
    assert torch.equal(out, text[1][:, : 24 + end + 1])
    assert torch.equal(out, target.generate(text[0], **options))
    short = target.generate(text[0], custom_generate=custom, max_new_tokens=5, do_sample=False)
    assert torch.equal(short, text[1][:, : 24 + 5])


def test_a_batch_with_padding(assistant: Any, text: Texts) -> None:
    """Padding is on the left of prompts and on the right of outputs, like in transformers."""
    target = tiny()
    rows = [prompt(9, seed=5)[0], text[0][0]]
    ids = torch.full((2, 24), 0)
    mask = torch.zeros(2, 24, dtype=torch.int64)
    for row, prompt_ids in enumerate(rows):
        ids[row, 24 - len(prompt_ids) :], mask[row, 24 - len(prompt_ids) :] = prompt_ids, 1
    eos = int(text[1][0, 24 + 7])
    options = {"max_new_tokens": NEW, "eos_token_id": eos, "pad_token_id": 3, "do_sample": False}
    expected = target.generate(ids, attention_mask=mask, **options)
    assert (expected == 3).any(), "one text ends before the other"
    custom = microspec_generate(assistant, num_groups=2, **SHAPE)
    out = target.generate(ids, attention_mask=mask, custom_generate=custom, **options)
    assert torch.equal(out, expected)


def test_sampling(target: Any, assistant: Any, text: Texts) -> None:
    """The loop samples with the call's settings and PyTorch's seed."""
    options: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": True}
    settings: dict[str, Any] = {"temperature": 1.5, "top_k": 20, "top_p": 0.9}
    custom = microspec_generate(assistant, **SHAPE)

    def sampled(seed: int, **more: Any) -> Tensor:
        torch.manual_seed(seed)
        return target.generate(text[0], custom_generate=custom, **options, **settings, **more)

    first = sampled(0)
    assert torch.equal(first, sampled(0)) and not torch.equal(first, sampled(1))
    torch.manual_seed(0)
    seed = int(torch.randint(2**63 - 1, ()))
    alone = generate(
        target, assistant, text[0], NEW, sampling=Sampling(seed=seed, **settings), **SHAPE
    )
    assert first[0, 24:].tolist() == alone.tokens.tolist()
    both = sampled(0, num_return_sequences=2)
    assert both.shape[0] == 2 and not torch.equal(both[0], both[1]), "one seed for two texts"


class Twice(TemperatureLogitsWarper):
    """A user's own logits processor; the loop cannot know its effect."""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 2}, "num_beams: expected 1, got 2"),
        ({"prompt_lookup_num_tokens": 2}, "greedy search or sampling, got assisted_generation"),
        ({"repetition_penalty": 1.1}, "logits_processor: .*got RepetitionPenaltyLogitsProcessor"),
        (
            {"min_new_tokens": 2, "eos_token_id": 5},
            "logits_processor: .*got Min.*LengthLogitsProcessor",
        ),
        ({"do_sample": True, "min_p": 0.1}, "logits_processor: .*got MinPLogitsWarper"),
        ({"do_sample": True, "logits_processor": LogitsProcessorList([Twice(0.5)])}, "got Twice"),
        (
            {
                "do_sample": True,
                "top_k": 0,
                "temperature": 0.5,
                "logits_processor": LogitsProcessorList(
                    [TopKLogitsWarper(5), MinPLogitsWarper(0.1)]
                ),
            },
            "got MinPLogitsWarper",
        ),
        (
            {
                "do_sample": True,
                "top_k": 0,
                "temperature": 0.5,
                "logits_processor": LogitsProcessorList([TopKLogitsWarper(5)]),
            },
            "logits_processor: .*got TemperatureLogitsWarper",
        ),
        ({"max_time": 9.0}, "stopping_criteria: .*got MaxTimeCriteria"),
        (
            {"stopping_criteria": StoppingCriteriaList([MaxTimeCriteria(9.0)])},
            "stopping_criteria: .*got MaxTimeCriteria",
        ),
        (
            {"return_dict_in_generate": True, "output_scores": True},
            "output_scores: expected False, got True",
        ),
        (
            {"attention_mask": torch.tensor([[1] * 23 + [0]])},
            "attention_mask: expected padding on the left only",
        ),
        ({"position_ids": torch.arange(1, 25)[None]}, "position_ids: expected those of the text"),
        ({"inputs_embeds": torch.zeros(1, 24, 32)}, "inputs_embeds: expected None"),
        ({"logits_to_keep": 5}, "logits_to_keep: expected 1, got 5"),
    ],
)
def test_refusals(
    target: Any, assistant: Any, text: Texts, options: dict[str, Any], message: str
) -> None:
    custom = microspec_generate(assistant, **SHAPE)
    with pytest.raises(ValueError, match=message):
        target.generate(text[0], **{"custom_generate": custom, "max_new_tokens": 4, **options})


def test_a_used_cache_is_refused(target: Any, assistant: Any, text: Texts) -> None:
    cache = DynamicCache()
    name = cache_argument(target)
    target(input_ids=text[0][:, :8], **{name: cache})
    with pytest.raises(ValueError, match=f"{name}: expected an empty cache, got 8 entries"):
        target.generate(
            text[0],
            custom_generate=microspec_generate(assistant, **SHAPE),
            max_new_tokens=4,
            **{name: cache},
        )


@pytest.mark.parametrize("options", [{"use_cache": False}, {"cache_implementation": "static"}])
def test_the_cache_may_be_any_empty_one(
    target: Any, assistant: Any, text: Texts, options: dict[str, Any]
) -> None:
    custom = microspec_generate(assistant, **SHAPE)
    out = target.generate(
        text[0], custom_generate=custom, max_new_tokens=NEW, do_sample=False, **options
    )
    assert torch.equal(out, text[1])


def test_what_a_newer_version_prepares(
    target: Any, assistant: Any, text: Texts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop asks for it under any name; a value unlike the prepared one is the caller's."""
    generate, prepared = target.generate, 1

    def newer(*args: Any, custom_generate: Any, **options: Any) -> Any:
        def handed_more(*args: Any, **options: Any) -> Any:
            return custom_generate(*args, **options, prepared_by_newer=prepared)

        return generate(*args, custom_generate=handed_more, **options)

    monkeypatch.setattr(target, "generate", newer)
    options: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": False}
    custom = microspec_generate(assistant, **SHAPE)
    assert torch.equal(target.generate(text[0], custom_generate=custom, **options), text[1])

    def caller(*args: Any, **options: Any) -> Any:
        return custom(*args, **{**options, "prepared_by_newer": 2})

    with pytest.raises(ValueError, match="prepared_by_newer: expected 1, got 2"):
        target.generate(text[0], custom_generate=caller, **options)


def test_nothing_is_said(
    target: Any, assistant: Any, text: Texts, caplog: pytest.LogCaptureFixture
) -> None:
    """No argument's name is deprecated, and no message of transformers appears twice."""
    custom = microspec_generate(assistant, **SHAPE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        target.generate(text[0], custom_generate=custom, max_new_tokens=4, do_sample=False)
        assert not caplog.records
        target.generate(
            text[0], custom_generate=custom, max_new_tokens=4, do_sample=False, eos_token_id=5
        )
    assert len({record.msg for record in caplog.records}) == len(caplog.records), caplog.text
