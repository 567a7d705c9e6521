# SPDX-License-Identifier: Apache-2.0
"""The models of these tests: small, random, in fp32, with text that does not repeat itself."""

import copy
from collections.abc import Sequence
from functools import cache
from typing import Any, Literal

import torch
import transformers
from torch import Tensor, nn

from microspec_kernels import ActiveVocab
from microspec_kernels.speculative import CausalModel, EagleDraft, LMHead, Sparse
from microspec_kernels.speculative.heads import Head

KINDS = ("llama", "mistral", "qwen2", "qwen3")
VOCAB = 199
SIZE = 32
# Latent attention: all heads share one key and value, and none of these widths is another's.
LATENT: dict[str, Any] = {
    "num_key_value_heads": 4, "kv_lora_rank": 20, "q_lora_rank": 16, "qk_nope_head_dim": 6,
    "v_head_dim": 12, "qk_rope_head_dim": 8,
}  # fmt: skip


def tiny(kind: str = "llama", seed: int = 1, **changes: Any) -> Any:
    """Make a two-layer model with weights large enough for its argmax to vary."""
    settings = {
        "vocab_size": VOCAB, "hidden_size": SIZE, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
        "max_position_embeddings": 512, "initializer_range": 0.5,
        "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
        **(LATENT if kind in ("deepseek_v3", "glm4_moe_lite") else {}),
        **changes,
    }  # fmt: skip
    config = type(transformers.AutoConfig.for_model(kind))(**settings)
    # load_target chooses the same attention. transformers 4 would choose one without the soft cap.
    capped = getattr(config, "attn_logit_softcapping", None)
    options = {"attn_implementation": "eager"} if capped else {}
    torch.manual_seed(seed)
    return transformers.AutoModelForCausalLM.from_config(config, **options).eval()


def noisy(model: Any, scale: float = 0.03) -> Any:
    """Copy a model and change every weight by a few hundredths of its spread.

    The copy is mostly right.
    """
    twin = copy.deepcopy(model)
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in twin.parameters():
            weight += scale * 0.5 * torch.randn(weight.shape, generator=noise)
    return twin


def truncated(model: Any, layers: int = 1) -> Any:
    """Return the first layers, with the whole model's norm and head."""
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:layers]
    short = transformers.AutoModelForCausalLM.from_config(config).eval()
    names = short.state_dict().keys()
    short.load_state_dict({k: v for k, v in model.state_dict().items() if k in names})
    return short


def eagle_config(**changes: Any) -> Any:
    """Return an EAGLE draft's config for `tiny`: grouped heads of a size unlike hidden / heads."""
    settings = {
        "vocab_size": VOCAB, "hidden_size": SIZE, "intermediate_size": 40,
        "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6,
        "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "bias": True, **changes,
    }  # fmt: skip
    return transformers.LlamaConfig(**settings)


def eagle(target: CausalModel, seed: int = 0, **changes: Any) -> EagleDraft:
    """Make a random EAGLE draft, with random biases and norms."""
    draft = EagleDraft(eagle_config(**changes), target).eval()
    values = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in draft.named_parameters():
            weight.copy_(torch.randn(weight.shape, generator=values) * 0.3 + ("norm" in name))
    return draft


def prompt(length: int, seed: int = 0) -> Tensor:
    """Draw a random prompt, int64 [1, length]."""
    return torch.randint(VOCAB, (1, length), generator=torch.Generator().manual_seed(seed))


def greedy(model: Any, input_ids: Tensor, count: int) -> Tensor:
    """Return the greedy output of `transformers`, int64 [<= count], the ground truth here."""
    return model.generate(input_ids, max_new_tokens=count, do_sample=False)[0, input_ids.shape[1] :]


@cache
def example(kind: str, length: int = 24, count: int = 32) -> tuple[Any, Tensor, Tensor]:
    """Return a model, a prompt and a greedy continuation that does not repeat itself."""
    model = tiny(kind)
    text = prompt(length)
    truth = greedy(model, text, count)
    assert len(set(truth.tolist())) > count // 3, "a degenerate example tests nothing"
    return model, text, truth


class Scrambled:
    """A draft that returns the same features for every input: wrong ones, or NaN."""

    feature_layers = ()

    def __init__(self, target: CausalModel, value: float) -> None:
        self.lm_head = target.lm_head
        self.value = value
        self._target = target

    def new_cache(self) -> Any:
        return self._target.new_cache()

    def head_input(self, features: Tensor) -> Tensor:
        return features

    def extend(self, tokens: Tensor, hidden: Tensor, counts: Any, cache: Any) -> Tensor:
        return torch.full_like(hidden[:, -1], self.value)

    def step(
        self, tokens: Tensor, parents: Tensor, positions: Tensor, mask: Tensor, cache: Any
    ) -> Tensor:
        return torch.full_like(parents, self.value)


def head_bias(model: Any, seed: int = 3) -> Any:
    """Copy a model and give its LM head a bias. No public model of these kinds has one."""
    twin = copy.deepcopy(model)
    old = twin.get_output_embeddings()
    new = nn.Linear(old.in_features, old.out_features)
    new.weight = old.weight
    torch.manual_seed(seed)
    nn.init.normal_(new.bias, std=2.0)
    twin.set_output_embeddings(new)
    return twin


class Spy(Sparse):
    """Record each call's active tokens per group, its proposed tokens and its learned tokens."""

    def __init__(
        self,
        lm_head: LMHead,
        capacity: int,
        num_groups: int = 1,
        pinned: Tensor | Sequence[int] = (),
        mode: Literal["indexed", "packed"] = "indexed",
    ) -> None:
        vocab = ActiveVocab(len(lm_head.weight), capacity, num_groups=num_groups, pinned=pinned)
        super().__init__(lm_head, vocab, mode)
        self.at_call: list[list[set[int]]] = []
        self.proposed: list[list[set[int]]] = []
        self.told: list[Tensor] = []
        self.told_groups: list[Tensor] = []
        self.resets: list[int] = []

    def active_sets(self) -> list[set[int]]:
        return [set(ids) - {-1} for ids in self.vocab.ids.tolist()]

    def topk(self, hidden: Tensor, k: int, row_groups: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self.at_call.append(self.active_sets())
        logits, tokens, logsumexp = super().topk(hidden, k, row_groups)
        self.proposed.append(
            [
                set(tokens[row_groups == group].flatten().tolist()) - {-1}
                for group in range(self.num_groups)
            ]
        )
        return logits, tokens, logsumexp

    def observe(self, tokens: Tensor, token_groups: Tensor) -> None:
        self.told.append(tokens)
        self.told_groups.append(token_groups)
        super().observe(tokens, token_groups)

    def reset(self, group: int) -> None:
        self.resets.append(group)
        super().reset(group)


def ranking(head: Head, hidden: Tensor, k: int, row_groups: Tensor) -> tuple[Tensor, Tensor]:
    """Return the log-probabilities fp32 [M, <= k] of a head's best tokens, and their ids."""
    logits, tokens, logsumexp = head.topk(hidden, k, row_groups)
    return logits - logsumexp[:, None], tokens
