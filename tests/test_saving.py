# SPDX-License-Identifier: Apache-2.0
"""A model with a SparseLMHead as LM head can be saved and loaded like the original."""

from pathlib import Path
from typing import Any

import pytest
import torch
from compare import assert_bitwise
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from microspec_kernels import ActiveVocab, SparseHead, SparseLMHead


def tiny(tied: bool, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=60, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, tie_word_embeddings=tied,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def sparse(model: Any, mode: Any) -> SparseLMHead:
    vocab = ActiveVocab(60, 16, frequent_tokens=list(range(20, 30)))
    head = SparseLMHead(model.get_output_embeddings().weight, vocab, mode=mode)
    model.set_output_embeddings(head)
    return head


@torch.no_grad()
def assert_same_logits(model: Any, dense: Any) -> None:
    """Assert equal logits for the active tokens, and -inf for all others."""
    tokens = torch.tensor([[3, 4, 5]])
    got, want = model(tokens).logits, dense(tokens).logits
    torch.testing.assert_close(got[..., 20:30], want[..., 20:30])
    assert got[..., :20].eq(-torch.inf).all()


@pytest.mark.parametrize("mode", ["indexed", "packed"])
@pytest.mark.parametrize("tied", [False, True])
def test_a_model_with_one(tmp_path: Path, tied: bool, mode: str) -> None:
    dense, model = tiny(tied), tiny(tied)
    sparse(model, mode)
    assert model.state_dict().keys() == dense.state_dict().keys()
    assert_bitwise(model.state_dict()["lm_head.weight"], dense.lm_head.weight)

    model.save_pretrained(tmp_path / "saved")
    loaded = LlamaForCausalLM.from_pretrained(tmp_path / "saved")
    for name, tensor in dense.state_dict().items():
        assert_bitwise(loaded.state_dict()[name], tensor, name)

    # Load another model's weights, strictly, and load them back into a dense model.
    other = tiny(tied, seed=1)
    torch.save(other.state_dict(), tmp_path / "state.pt")
    model.load_state_dict(torch.load(tmp_path / "state.pt"), strict=True)
    assert_same_logits(model, other)
    dense.load_state_dict(model.state_dict(), strict=True)
    assert_same_logits(model, dense)
    if tied:
        assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()


@pytest.mark.parametrize("mode", ["indexed", "packed"])
def test_assigned_tensors_and_a_bias(mode: Any) -> None:
    linear, other = nn.Linear(16, 60), nn.Linear(16, 60)
    vocab = ActiveVocab(60, 16, frequent_tokens=[1, 2, 3])
    head = SparseLMHead(linear.weight, vocab, mode=mode, bias=linear.bias)
    head.load_state_dict(other.state_dict(), strict=True, assign=True)
    hidden = torch.randn(2, 16)
    with torch.no_grad():
        torch.testing.assert_close(head(hidden)[:, 1:4], other(hidden)[:, 1:4])


def test_a_head_beside_the_model_saves_nothing() -> None:
    head = SparseHead(torch.randn(60, 16), ActiveVocab(60, 16), bias=torch.randn(60))
    assert head.state_dict() == {}
    head.load_state_dict({}, strict=True)
