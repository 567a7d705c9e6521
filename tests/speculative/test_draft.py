"""The drafts: EAGLE's layer against its formula, and what the loop tells a draft."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from microspec_kernels.speculative import CausalModel, EagleDraft, ModelDraft, generate
from microspec_kernels.speculative.cache import causal

from .models import SIZE, VOCAB, eagle, example, prompt, tiny


def plain_eagle(draft: EagleDraft, tokens: Tensor, features: Tensor) -> Tensor:
    """EAGLE's forward pass over one text, written down head by head in fp64, without a cache.

    Row i of `features` is that of the token before `tokens[i]`.
    """
    config = draft_config(draft)
    state = {name: weight.double() for name, weight in draft.state_dict().items()}

    def linear(name: str, x: Tensor) -> Tensor:
        bias = state.get(f"{name}.bias", torch.zeros(()).double())
        return x @ state[f"{name}.weight"].T + bias

    def turned(x: Tensor, position: int) -> Tensor:
        half = len(x) // 2
        out = x.clone()
        for i in range(half):
            angle = position / config["theta"] ** (2 * i / len(x))
            out[i] = x[i] * math.cos(angle) - x[i + half] * math.sin(angle)
            out[i + half] = x[i + half] * math.cos(angle) + x[i] * math.sin(angle)
        return out

    x = linear("fc", torch.cat((draft.embedding[tokens], features), dim=-1).double())
    layer, dim = "layers.0", config["head_dim"]
    q, k, v = (linear(f"{layer}.self_attn.{name}_proj", x) for name in "qkv")
    attended = []
    for row in range(len(tokens)):
        heads = []
        for head in range(config["heads"]):
            group = head // (config["heads"] // config["groups"])
            own = slice(head * dim, (head + 1) * dim)
            shared = slice(group * dim, (group + 1) * dim)
            query = turned(q[row, own], row)
            keys = torch.stack([turned(k[other, shared], other) for other in range(row + 1)])
            weights = (keys @ query / math.sqrt(dim)).softmax(0)
            heads.append(weights @ v[: row + 1, shared])
        attended.append(torch.cat(heads))
    x = x + linear(f"{layer}.self_attn.o_proj", torch.stack(attended))
    norm = x / (x.square().mean(-1, keepdim=True) + config["eps"]).sqrt()
    norm = norm * state[f"{layer}.post_attention_layernorm.weight"]
    gate = linear(f"{layer}.mlp.gate_proj", norm)
    inner = gate * gate.sigmoid() * linear(f"{layer}.mlp.up_proj", norm)
    return (x + linear(f"{layer}.mlp.down_proj", inner)).float()


def draft_config(draft: EagleDraft) -> dict[str, Any]:
    attention: Any = draft.layers[0].self_attn
    dim = attention.head_dim
    return {
        "head_dim": dim,
        "heads": attention.q_proj.out_features // dim,
        "groups": attention.k_proj.out_features // dim,
        "eps": 1e-5,
        "theta": 10000.0,
    }


@torch.inference_mode()
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"bias": False},
        {"qkv_bias": True},
        {"attention_bias": True, "mlp_bias": True},
        {"num_key_value_heads": 4, "head_dim": SIZE // 4},
    ],
    ids=str,
)
def test_eagle_equals_its_formula(changes: dict[str, Any]) -> None:
    """Over a text read in two parts, and over every path of a tree drafted below it."""
    target = CausalModel(tiny())
    draft = eagle(target, **changes)
    text, hidden = prompt(9)[0], torch.randn(8, SIZE)
    cache = draft.new_cache()
    draft.extend(text[:6], hidden[:5], cache)
    feature = draft.extend(text[6:], hidden[5:], cache)
    expected = plain_eagle(draft, text[1:], hidden)
    torch.testing.assert_close(feature, expected[-1:], rtol=1e-3, atol=1e-4)

    # Two nodes below the text, then a child of the second and one of the first.
    first, second = torch.tensor([3, 4]), torch.tensor([5, 6])
    features = draft.step(first, feature.expand(2, -1), torch.eye(2).bool(), cache)
    rows = torch.tensor([1, 0])
    lineage = torch.cat((torch.eye(2).bool()[rows], torch.eye(2).bool()), dim=1)
    deeper = draft.step(second, features[rows], lineage, cache)
    for node, parent in ((0, 1), (1, 0)):
        path = torch.cat((text[1:], first[parent : parent + 1], second[node : node + 1]))
        inputs = torch.cat((hidden, feature, features[parent : parent + 1]))
        whole = plain_eagle(draft, path, inputs)
        torch.testing.assert_close(features[parent], whole[-2], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(deeper[node], whole[-1], rtol=1e-3, atol=1e-4)

    # The guesses dropped, the text goes on as if they had never been.
    cache.keep(8, [])
    more, true = torch.tensor([1, 2]), torch.randn(2, SIZE)
    after = draft.extend(more, true, cache)
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
    draft.extend(text[:4], hidden[:3], parts)
    torch.testing.assert_close(
        draft.extend(text[4:], hidden[3:], parts), draft.extend(text, hidden, whole)
    )


class Recorder:
    """Another draft that writes down what it is told of the text."""

    def __init__(self, draft: Any) -> None:
        self.draft = draft
        self.head_weight, self.head_bias = draft.head_weight, draft.head_bias
        self.tokens: list[Tensor] = []
        self.hidden: list[Tensor] = []
        self.lengths: list[int] = []

    def new_cache(self) -> Any:
        return self.draft.new_cache()

    def extend(self, tokens: Tensor, hidden: Tensor, cache: Any) -> Tensor:
        self.tokens.append(tokens)
        self.hidden.append(hidden)
        feature: Tensor = self.draft.extend(tokens, hidden, cache)
        self.lengths.append(cache.length)
        return feature

    def step(self, tokens: Tensor, parents: Tensor, lineage: Tensor, cache: Any) -> Tensor:
        features: Tensor = self.draft.step(tokens, parents, lineage, cache)
        return features


@pytest.mark.parametrize("kind", ["model", "eagle"])
def test_a_draft_hears_the_text_and_the_targets_true_features(kind: str) -> None:
    model, text, truth = example("qwen2")
    target = CausalModel(model)
    draft = Recorder(ModelDraft(model) if kind == "model" else eagle(target))
    result = generate(target, draft, text, len(truth), head="dense", depth=3, top_k=3)

    told = torch.cat(draft.tokens)
    whole = torch.cat((text[0], result.tokens))
    assert told.tolist() == whole[: len(told)].tolist()
    assert len(told) == len(whole) - result.acceptance_lengths[-1]
    with torch.inference_mode():
        true = target.forward(whole, causal(len(whole), whole.device), target.new_cache())
    features = torch.cat(draft.hidden)
    assert len(features) == len(told) - 1
    torch.testing.assert_close(features, true[: len(features)], rtol=1e-3, atol=1e-3)
    # Guessed entries never outlive a tree: one entry a token heard, or a feature.
    heard = torch.tensor([len(t) for t in draft.tokens]).cumsum(0)
    assert draft.lengths == (heard - int(kind == "eagle")).tolist()


@torch.inference_mode()
def test_a_model_draft_is_that_model() -> None:
    model = tiny("llama")
    draft = ModelDraft(model)
    text = prompt(9)[0]
    cache = draft.new_cache()
    draft.extend(text[:5], torch.zeros(4, SIZE), cache)
    feature = draft.extend(text[5:], torch.zeros(4, SIZE), cache)
    logits = feature @ draft.head_weight.T
    torch.testing.assert_close(logits, model(text[None]).logits[0, -1:], rtol=1e-4, atol=1e-4)
    assert logits.shape == (1, VOCAB)
