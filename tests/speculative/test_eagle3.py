# SPDX-License-Identifier: Apache-2.0
"""EAGLE-3 in every public format: its computation, and the loop with it."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from microspec_kernels.speculative import (
    Batch,
    CausalModel,
    Dense,
    Eagle3Draft,
    generate,
    load_draft,
)

from .eagle3 import FORMATS, SPECULATORS, Plain, tensors, write
from .models import SIZE, VOCAB, eagle_config, greedy, prompt, tiny

DEPTH = 4


@cache
def example() -> tuple[Any, Tensor, Tensor]:
    """Return a target deep enough for three feature layers, a prompt and its continuation."""
    model, text = tiny("llama", num_hidden_layers=7, initializer_range=0.3), prompt(12)
    return model, text, greedy(model, text, 24)


@pytest.fixture
def target() -> CausalModel:
    return CausalModel(example()[0])


class First(Dense):
    """Record the first choice of every call."""

    def __init__(self, draft: Any) -> None:
        super().__init__(draft.lm_head)
        self.first: list[int] = []

    def topk(self, hidden: Tensor, k: int, row_groups: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits, tokens, logsumexp = super().topk(hidden, k, row_groups)
        self.first.append(int(tokens[0, 0]))
        return logits, tokens, logsumexp


@pytest.mark.parametrize("name", FORMATS)
def test_the_loop_drafts_what_the_formula_does(
    name: str, tmp_path: Path, target: CausalModel
) -> None:
    """Compare chains below a prompt and below a longer text, from the target's hidden states."""
    model, text, truth = example()
    state = tensors(name)
    draft, plain = load_draft(write(tmp_path, name, state), target), Plain(name, state, target)
    assert list(draft.feature_layers) == plain.feature_layers
    whole = torch.cat((text[0], truth))
    with torch.no_grad():
        hidden_states = model.model(whole[None], output_hidden_states=True).hidden_states
    before, spy = plain.fused(hidden_states), First(draft)
    result = generate(target, draft, text, len(truth), head=spy, depth=DEPTH, tree_width=1)
    assert result.tokens.tolist() == truth.tolist()
    for step in (0, 3):
        newest = text.shape[1] + sum(result.acceptance_lengths[:step])
        expected = plain.chain(whole[1 : newest + 1], before[:newest], DEPTH)
        assert spy.first[step * DEPTH :][:DEPTH] == expected


@torch.no_grad()
@pytest.mark.parametrize("name", FORMATS)
def test_features_and_logits_equal_the_formula(
    name: str, tmp_path: Path, target: CausalModel
) -> None:
    """Read a text in two parts, then a node below it, then text that replaces the node."""
    model, text, _ = example()
    state = tensors(name)
    draft, plain = load_draft(write(tmp_path, name, state), target), Plain(name, state, target)
    hidden, read = target.prefill(text[0], target.new_cache(), draft.feature_layers)
    hidden_states = model.model(text, output_hidden_states=True).hidden_states
    expected = plain.features(text[0, 1:], plain.fused(hidden_states)[:-1])
    logits = plain.logits(expected)

    cache = draft.new_cache()
    draft.extend(text[:, :6], read[None, :5], torch.tensor([6]), cache)
    feature = draft.extend(text[:, 6:9], read[None, 5:8], torch.tensor([3]), cache)
    close(feature, expected[7:8])
    close(draft.lm_head.logits(draft.head_input(feature)), logits[7:8])

    node = torch.tensor([[3]])
    below = draft.step(node, feature[None], cache.ahead(1), cache.causal(1), cache)
    path = torch.cat((text[0, 1:9], node[0]))
    inputs = torch.cat((plain.fused(hidden_states)[:8], expected[7:8]))
    close(below[0], plain.features(path, inputs)[-1:])

    cache.drop()
    close(draft.extend(text[:, 9:], read[None, 8:11], torch.tensor([3]), cache), expected[-1:])
    assert hidden.shape == (12, SIZE)


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected.float(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("head", ["dense", "static", "sparse"])
@pytest.mark.parametrize("name", FORMATS)
def test_the_output_is_the_targets(
    name: str, head: Any, tmp_path: Path, target: CausalModel
) -> None:
    _, text, truth = example()
    draft = load_draft(write(tmp_path, name, tensors(name)), target)
    frequent = torch.randperm(VOCAB, generator=torch.Generator().manual_seed(7))
    for capacity in (8, VOCAB):
        result = generate(
            target, draft, text, len(truth), head=head, capacity=capacity, frequent_tokens=frequent
        )
        assert result.tokens.tolist() == truth.tolist()


def test_texts_of_a_batch_have_vocabularies_of_their_own_rows(
    tmp_path: Path, target: CausalModel
) -> None:
    draft = load_draft(write(tmp_path, "official", tensors("official")), target)
    texts = [prompt(length, seed=length) for length in (5, 12)]
    batch = Batch(target, draft, num_groups=2, capacity=16, depth=3, tree_width=4, tree_size=9)
    requests = [batch.join(text, 16) for text in texts]
    while batch.requests:
        batch.step()
    for request, text in zip(requests, texts, strict=True):
        assert request.tokens == greedy(target.model, text, 16).tolist()
        assert request.stats.active_max == 16
        assert 0 < request.stats.coverage < 1


@torch.no_grad()
def test_later_layers_are_llamas(target: CausalModel) -> None:
    """From the second layer on, attention reads the layer's own norm of one hidden state."""
    draft = Eagle3Draft(eagle_config(num_hidden_layers=2), target)
    names = draft.state_dict().keys()
    assert "layers.1.input_layernorm.weight" in names and "layers.1.hidden_norm.weight" not in names
    text, read = prompt(9), torch.randn(1, 8, 3 * SIZE)
    parts, whole = draft.new_cache(), draft.new_cache()
    draft.extend(text[:, :4], read[:, :3], torch.tensor([4]), parts)
    feature = draft.extend(text[:, 4:], read[:, 3:], torch.tensor([5]), parts)
    close(feature, draft.extend(text, read, torch.tensor([9]), whole))
    for name, weight in draft.layers[1].named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weight.zero_()
    alone = Eagle3Draft(eagle_config(), target)
    alone.load_state_dict({k: v for k, v in draft.state_dict().items() if "layers.1" not in k})
    passed = draft.extend(text, read, torch.tensor([9]), draft.new_cache())
    assert torch.equal(passed, alone.extend(text, read, torch.tensor([9]), alone.new_cache()))
    assert not torch.equal(passed, feature)


def test_a_bias_of_fc_as_the_first_speculators_had(tmp_path: Path, target: CausalModel) -> None:
    state = tensors("speculators")
    write(tmp_path, "speculators", state | {"fc.bias": torch.ones(SIZE)})
    assert torch.equal(load_draft(tmp_path, target).fc.bias, torch.ones(SIZE))


def test_a_narrower_draft_brings_its_own_embedding_and_head(
    tmp_path: Path, target: CausalModel
) -> None:
    _, text, truth = example()
    layer = {**SPECULATORS["transformer_layer_config"], "hidden_size": 16}
    config = {"transformer_layer_config": layer, "target_hidden_size": SIZE}
    state = tensors("speculators", size=16)
    draft = load_draft(write(tmp_path, "speculators", state, **config), target)
    assert draft.lm_head.weight.shape[1] == 16
    for head in ("dense", "sparse"):
        result = generate(target, draft, text, len(truth), head=head)
        assert result.tokens.tolist() == truth.tolist()
    del state["embed_tokens.weight"]
    write(tmp_path, "speculators", state, **config)
    with pytest.raises(ValueError, match=r"hidden_size: .* 32 of a draft without .*, got 16"):
        load_draft(tmp_path, target)


@pytest.mark.parametrize("feature_layers", [[2, 3, 7], [-1, 2, 3]])
def test_taps_that_the_target_does_not_have(feature_layers: list[int], target: CausalModel) -> None:
    config = eagle_config(eagle_aux_hidden_state_layer_ids=feature_layers)
    with pytest.raises(ValueError, match=r"layer_ids: expected layers of the target, in \[0, 7\)"):
        Eagle3Draft(config, target)
    with pytest.raises(ValueError, match=r"in \[0, 2\), got \[2, 1, -1\]"):
        Eagle3Draft(eagle_config(), CausalModel(tiny()))
