# SPDX-License-Identifier: Apache-2.0
"""The drafts: EAGLE's layer against its formula, and the loop's calls of a draft."""

from typing import Any

import pytest
import torch
from torch import Tensor

from microspec_kernels.speculative import (
    CausalModel,
    Eagle3Draft,
    EagleDraft,
    ModelDraft,
    generate,
)

from .formula import Formula
from .models import SIZE, VOCAB, eagle, eagle_config, example, prompt, tiny


def plain_eagle(draft: EagleDraft, tokens: Tensor, features: Tensor) -> Tensor:
    """Compute EAGLE's forward pass over one text.

    Row i of `features` belongs to the token before `tokens[i]`.
    """
    attention: Any = draft.layers[0].self_attn
    dim = attention.head_dim
    config = {
        "num_attention_heads": attention.q_proj.out_features // dim,
        "num_key_value_heads": attention.k_proj.out_features // dim,
        "rms_norm_eps": 1e-5,
    }
    state = draft.state_dict()
    joined = torch.cat((draft.embedding[tokens], features), dim=-1).double()
    x = Formula(state, config).linear("fc", joined)
    for index, window in enumerate(draft.windows):
        formula, name = Formula(state, config | {"sliding_window": window}), f"layers.{index}"
        x = formula.layer(name, formula.norm(f"{name}.input_layernorm", x) if index else x, x)
    return x.float()


def read(draft: Any, tokens: Tensor, hidden: Tensor, cache: Any) -> Tensor:
    """Call `extend` for one text: tokens [n], features [m, F] to [1, D]."""
    feature: Tensor = draft.extend(tokens[None], hidden[None], torch.tensor([len(tokens)]), cache)
    return feature


@torch.inference_mode()
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"bias": False},
        {"qkv_bias": True},
        {"attention_bias": True, "mlp_bias": True},
        {"num_key_value_heads": 4, "head_dim": SIZE // 4},
        {"num_hidden_layers": 3, "windows": (4, None, 6), "qk_norm": True},
    ],
    ids=str,
)
def test_eagle_equals_its_formula(changes: dict[str, Any]) -> None:
    """Read a text in two parts, then follow every path of a tree drafted below it."""
    target = CausalModel(tiny())
    draft = eagle(target, **changes)
    text, hidden = prompt(9)[0], torch.randn(8, SIZE)
    cache = draft.new_cache()
    read(draft, text[:6], hidden[:5], cache)
    feature = read(draft, text[6:], hidden[5:], cache)
    expected = plain_eagle(draft, text[1:], hidden)
    torch.testing.assert_close(feature, expected[-1:], rtol=1e-3, atol=1e-4)

    # Two nodes below the text, then a child of the second and one of the first.
    first, second = torch.tensor([3, 4]), torch.tensor([5, 6])
    itself, rows = cache.alone(2), torch.tensor([1, 0])
    mask, positions = cache.mask(torch.eye(2).bool()[None]), cache.ahead(2)
    features = draft.step(first[None], feature.expand(1, 2, -1), positions[:, :1], mask, cache)[0]
    mask = torch.cat((itself, mask[:, rows]), dim=2)
    deeper = draft.step(second[None], features[None, rows], positions[:, 1:], mask, cache)[0]
    for node, parent in ((0, 1), (1, 0)):
        path = torch.cat((text[1:], first[parent : parent + 1], second[node : node + 1]))
        inputs = torch.cat((hidden, feature, features[parent : parent + 1]))
        whole = plain_eagle(draft, path, inputs)
        torch.testing.assert_close(features[parent], whole[-2], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(deeper[node], whole[-1], rtol=1e-3, atol=1e-4)

    # After the drafted entries are dropped, the text continues as if they had never existed.
    cache.drop()
    more, true = torch.tensor([1, 2]), torch.randn(2, SIZE)
    after = read(draft, more, true, cache)
    path, inputs = torch.cat((text[1:], more)), torch.cat((hidden, true))
    torch.testing.assert_close(after, plain_eagle(draft, path, inputs)[-1:], rtol=1e-3, atol=1e-4)


def test_which_projections_of_eagle_have_a_bias() -> None:
    target = CausalModel(tiny())

    def biased(**changes: Any) -> set[str]:
        names = eagle(target, **changes).state_dict()
        return {name.split(".")[-2] for name in names if name.endswith(".bias")}

    qkv = {"q_proj", "k_proj", "v_proj"}
    mlp = {"gate_proj", "up_proj", "down_proj"}
    assert biased() == {"fc"}
    assert biased(bias=False, qkv_bias=True) == qkv
    assert biased(attention_bias=True, mlp_bias=True) == {"fc", "o_proj", *qkv, *mlp}


@torch.inference_mode()
def test_a_second_eagle_layer_has_a_norm_before_its_attention() -> None:
    draft = eagle(CausalModel(tiny()), num_hidden_layers=2)
    names = draft.state_dict().keys()
    assert "layers.1.input_layernorm.weight" in names
    assert "layers.0.input_layernorm.weight" not in names
    text, hidden = prompt(9)[0], torch.randn(8, SIZE)
    parts, whole = draft.new_cache(), draft.new_cache()
    read(draft, text[:4], hidden[:3], parts)
    torch.testing.assert_close(
        read(draft, text[4:], hidden[3:], parts), read(draft, text, hidden, whole)
    )


class Recorder:
    """Wrap another draft and record the text that it receives."""

    def __init__(self, draft: Any) -> None:
        self.draft = draft
        self.lm_head, self.feature_layers = draft.lm_head, draft.feature_layers
        self.head_input, self.step, self.new_cache = draft.head_input, draft.step, draft.new_cache
        self.tokens: list[Tensor] = []
        self.hidden: list[Tensor] = []
        self.lengths: list[int] = []

    def extend(self, tokens: Tensor, hidden: Tensor, counts: Any, cache: Any) -> Tensor:
        (count,) = counts.tolist()
        self.tokens.append(tokens[0, :count])
        self.hidden.append(hidden[0, : count - tokens.shape[1] + hidden.shape[1]])
        feature: Tensor = self.draft.extend(tokens, hidden, counts, cache)
        self.lengths += cache.ends.tolist()
        return feature


@pytest.mark.parametrize("kind", ["model", "eagle", "eagle3"])
def test_a_draft_hears_the_text_and_the_targets_true_features(kind: str) -> None:
    model, text, truth = example("qwen2")
    target = CausalModel(model)
    config = eagle_config(eagle_aux_hidden_state_layer_ids=[1, 0])
    drafts = {
        "model": lambda: ModelDraft(model),
        "eagle": lambda: eagle(target),
        "eagle3": lambda: Eagle3Draft(config, target),
    }
    draft = Recorder(drafts[kind]())
    result = generate(target, draft, text, len(truth), head="dense", depth=3, tree_width=3)

    told = torch.cat(draft.tokens)
    whole = torch.cat((text[0], result.tokens))
    # The last step may emit more tokens than were asked for.
    assert told[: len(whole)].tolist() == whole.tolist()
    with torch.inference_mode():
        out = model.model(told[None], output_hidden_states=True)
    true = out.last_hidden_state[0]
    if kind == "eagle3":
        true = torch.cat((out.hidden_states[1], out.hidden_states[0]), dim=-1)[0]
    features = torch.cat(draft.hidden)
    assert len(features) == len(told) - 1
    torch.testing.assert_close(features, true[: len(features)], rtol=1e-3, atol=1e-3)
    # Drafted entries are dropped with their tree: one entry remains per token, or per feature.
    heard = torch.tensor([len(t) for t in draft.tokens]).cumsum(0)
    assert draft.lengths == (heard - int(kind != "model")).tolist()


@torch.inference_mode()
def test_texts_of_different_lengths_are_read_side_by_side() -> None:
    """Padding of a shorter text reaches neither its feature nor its cache."""
    target = CausalModel(tiny())
    config = eagle_config(eagle_aux_hidden_state_layer_ids=[1, 0])
    tokens, counts = torch.stack([prompt(6, seed=seed)[0] for seed in (1, 2)]), torch.tensor([6, 3])
    for draft in (ModelDraft(target), eagle(target), Eagle3Draft(config, target)):
        width = SIZE * max(1, len(draft.feature_layers))
        hidden = torch.randn(2, 6, width)
        both = draft.new_cache()
        both.reserve(2, 0)
        both.rows = 2
        first = draft.extend(tokens, hidden, counts, both)
        second = draft.extend(tokens.flip(0), hidden, torch.tensor([2, 2]), both)
        for text, count in enumerate(counts.tolist()):
            alone = draft.new_cache()
            one, other = tokens[text, :count], tokens.flip(0)[text, :2]
            torch.testing.assert_close(
                read(draft, one, hidden[text, :count], alone)[0], first[text]
            )
            torch.testing.assert_close(read(draft, other, hidden[text, :2], alone)[0], second[text])
        assert both.ends.tolist() == [8, 5]


@torch.inference_mode()
def test_a_model_draft_is_that_model() -> None:
    model = tiny("llama")
    draft = ModelDraft(model)
    text = prompt(9)[0]
    cache = draft.new_cache()
    read(draft, text[:5], torch.zeros(4, SIZE), cache)
    feature = read(draft, text[5:], torch.zeros(4, SIZE), cache)
    logits = draft.lm_head.logits(draft.head_input(feature))
    torch.testing.assert_close(logits, model(text[None]).logits[0, -1:], rtol=1e-4, atol=1e-4)
    assert logits.shape == (1, VOCAB)
