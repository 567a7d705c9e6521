# SPDX-License-Identifier: Apache-2.0
"""The loop calls a target's LM head of any kind. A draft's head must be exactly its rows."""

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from altered import ALTERED, Embedding, Linear, alter
from torch import nn

from microspec_kernels.speculative import CausalModel, ModelDraft, Sampling, generate, load_draft

from .eagle3 import tensors, write
from .models import VOCAB, eagle, example, greedy, prompt, tiny

KINDS = list(ALTERED)


def altered(kind: str, **changes: Any) -> Any:
    return alter(tiny(**changes), kind)


@pytest.mark.parametrize("kind", KINDS)
def test_the_text_is_that_of_the_altered_target(kind: str) -> None:
    model, text = altered(kind), prompt(24)
    truth = greedy(model, text, 24).tolist()
    plain = greedy(tiny(), text, 24).tolist()
    assert (truth != plain) is (kind != "tensor subclass"), "the same text anyway tests nothing"
    for head in ("dense", "sparse"):
        result = generate(model, tiny(), text, 24, head=head, depth=3, tree_width=2)
        assert result.tokens.tolist() == truth, head


def test_scale_and_soft_cap_stay_behind_an_adapted_head() -> None:
    for kind, changes in (
        ("granite", {"logits_scaling": 6.0}),
        ("gemma3_text", {"final_logit_softcapping": 3.0, "tie_word_embeddings": False}),
    ):
        model = alter(tiny(kind, initializer_range=0.3, **changes), "adapter")
        target, text = CausalModel(model), prompt(9)
        with torch.no_grad():
            hidden = target.prefill(text[0], target.new_cache())[0][None]
            torch.testing.assert_close(
                target.logits(hidden), model(text).logits, rtol=1e-4, atol=1e-4
            )


def test_an_adapter_that_comes_later_counts() -> None:
    model, text = tiny(), prompt(24)
    target = CausalModel(model)
    assert target.lm_head.weight.data_ptr() == model.lm_head.weight.data_ptr()
    model.lm_head = Linear(model.lm_head)
    result = generate(target, tiny(), text, 12)
    assert result.tokens.tolist() == greedy(model, text, 12).tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_drafts_that_would_read_its_rows_are_refused(kind: str) -> None:
    model, message = altered(kind), f"LlamaForCausalLM: LM head: .*{ALTERED[kind][1]}"
    with pytest.raises(TypeError, match=message):
        ModelDraft(model)
    with pytest.raises(TypeError, match=message):
        generate(tiny(), model, prompt(5), 4)
    with pytest.raises(TypeError, match=message):
        eagle(CausalModel(model))


def test_an_adapted_embedding_is_not_lent() -> None:
    """The loop calls the embedding of a target or model draft; EAGLE drafts cannot borrow it."""
    model, text = tiny(), prompt(24)
    model.model.embed_tokens = Embedding(model.model.embed_tokens)
    truth = greedy(model, text, 12).tolist()
    assert truth != greedy(tiny(), text, 12).tolist()
    result = generate(model, model, text, 11, head="dense", depth=4, tree_width=1)
    assert result.tokens.tolist() == truth[:11] and result.acceptance_lengths == [5, 5]
    with pytest.raises(TypeError, match=r"embedding: expected exactly nn.Embedding.*altered.Emb"):
        eagle(CausalModel(model))
    hooked = tiny()
    hooked.model.embed_tokens.register_forward_hook(lambda module, args, out: 2 * out)
    with pytest.raises(TypeError, match="got Embedding with forward hooks"):
        eagle(CausalModel(hooked))


def test_the_models_own_kind_of_embedding_is_lent() -> None:
    model = tiny("gemma3_text")
    assert type(model.get_input_embeddings()) is not nn.Embedding
    weight = model.get_input_embeddings().weight
    assert CausalModel(model).embedding.data_ptr() == weight.data_ptr()


@pytest.mark.parametrize("kind", ["adapter", "tensor subclass"])
def test_a_draft_with_rows_of_its_own_needs_none_of_the_targets(kind: str, tmp_path: Any) -> None:
    """The draft keeps rows equal to those under the adapter, because the target's head differs."""
    model = altered(kind, num_hidden_layers=7)
    model.model.embed_tokens = Embedding(model.model.embed_tokens)
    target, state = CausalModel(model), tensors("speculators")
    tokens = torch.arange(60) + state["d2t"]
    state["lm_head.weight"] = tiny(num_hidden_layers=7).lm_head.weight.detach()[tokens].clone()
    draft = load_draft(write(tmp_path, "speculators", state), target)
    assert torch.equal(draft.lm_head.weight, state["lm_head.weight"])
    assert torch.equal(draft.lm_head.ids, tokens)
    text = prompt(24)
    result = generate(target, draft, text, 12)
    assert result.tokens.tolist() == greedy(model, text, 12).tolist()


class Peft(nn.Module):
    """A wrapper like peft's PeftModel: the model's attributes, with `base_model` in between."""

    def __init__(self, model: Any, **config: Any) -> None:
        super().__init__()
        self.base_model = nn.Module()
        self.base_model.model = model
        self.peft_config = {"default": SimpleNamespace(**{"peft_type": "LORA", **config})}

    def get_base_model(self) -> Any:
        return self.base_model.model

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base_model").model, name)


@pytest.mark.parametrize("sampling", [None, Sampling(1.0, seed=3)], ids=["greedy", "sampled"])
def test_a_peft_model_is_the_model_with_its_adapters(sampling: Sampling | None) -> None:
    inside, text = altered("adapter"), prompt(24)
    inside.model.layers[0].self_attn.q_proj = Linear(inside.model.layers[0].self_attn.q_proj)
    result = generate(Peft(inside), tiny(), text, 16, sampling=sampling)
    alone = generate(
        inside, tiny(), text, 16, sampling=sampling, head="dense", depth=1, tree_width=1
    )
    assert result.tokens.tolist() == alone.tokens.tolist()
    if sampling is None:
        assert result.tokens.tolist() == greedy(inside, text, 16).tolist()


@pytest.mark.parametrize(
    ("config", "got"),
    [
        ({"peft_type": "PROMPT_TUNING"}, "got PROMPT_TUNING"),
        ({"peft_type": SimpleNamespace(value="XLORA")}, "got XLORA"),
        ({"alora_invocation_tokens": [1]}, "got LORA with alora_invocation_tokens"),
    ],
)
def test_adapters_outside_the_models_modules_are_refused(config: Any, got: str) -> None:
    with pytest.raises(ValueError, match=f"PeftModel whose adapters are all LORA.*{got}"):
        CausalModel(Peft(tiny(), **config))


def test_hooks_on_the_whole_model_are_refused() -> None:
    """The loop calls the model's parts, so such hooks would not run."""
    for register in ("register_forward_hook", "register_forward_pre_hook"):
        model = copy.deepcopy(example("llama")[0])
        getattr(model, register)(lambda *_: None)
        with pytest.raises(ValueError, match=r"expected no forward hooks.*got LlamaForCausalLM"):
            generate(model, model, prompt(5), 4)


def test_weights_that_are_not_there_are_refused() -> None:
    """A model that accelerate offloaded has some or all weights on meta."""
    model = tiny()
    model.model.layers[0].to("meta")
    with pytest.raises(ValueError, match="all weights on one device, got them on cpu, meta"):
        CausalModel(model)
    with pytest.raises(ValueError, match="all weights on one device, got them on meta"):
        CausalModel(model.to("meta"))
    assert CausalModel(tiny()).vocab_size == VOCAB
