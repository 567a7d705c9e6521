# SPDX-License-Identifier: Apache-2.0
"""What `sparse_assistant` accepts, its errors, and that it restores the models on exit."""

import copy
from typing import Any

import pytest
import torch
from altered import ALTERED, alter
from speculative.models import VOCAB, noisy, prompt, tiny
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration

from microspec_kernels.integrations.transformers import sparse_assistant


@pytest.mark.parametrize("fails", [False, True])
def test_the_assistant_is_given_back(target: Any, fails: bool) -> None:
    tied = noisy(tiny(seed=2, tie_word_embeddings=True))
    lm_head, weights = tied.get_output_embeddings(), copy.deepcopy(tied.state_dict())
    own_of_target = target.get_output_embeddings()
    try:
        with sparse_assistant(tied, target) as head:
            assert tied.get_output_embeddings() is head
            assert head.weight.data_ptr() == lm_head.weight.data_ptr(), "a copy of the weight"
            assert target.get_output_embeddings() is own_of_target
            out = target.generate(prompt(9), assistant_model=tied, max_new_tokens=8)
            assert out.shape == (1, 17)
            size = int(head.vocab.size)
            if fails:
                raise KeyError
    except KeyError:
        assert fails
    assert tied.get_output_embeddings() is lm_head
    assert lm_head.weight is tied.get_input_embeddings().weight
    assert all(torch.equal(weights[name], tensor) for name, tensor in tied.state_dict().items())
    target.generate(prompt(9, seed=1), assistant_model=tied, max_new_tokens=8)
    assert int(head.vocab.size) == size, "a hook that still observes"


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda target: target, ValueError, "assistant: expected another model than the target"),
        (lambda target: nn.Linear(2, 2), TypeError, "assistant: expected a causal LM, got Linear"),
        (lambda target: tiny(vocab_size=VOCAB + 1), ValueError, "got 200 rows"),
        (lambda target: tiny().double(), ValueError, "bf16, fp16 or fp32, got torch.float64"),
        (
            lambda target: T5ForConditionalGeneration(
                T5Config(vocab_size=VOCAB, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
            ),
            ValueError,
            "assistant: expected a decoder-only model, got T5ForConditionalGeneration",
        ),
    ],
)  # fmt: skip
def test_refusals(target: Any, make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message), sparse_assistant(make(target), target):
        pass


@pytest.mark.parametrize("kind", ALTERED)
def test_an_altered_head_is_refused(kind: str, target: Any) -> None:
    assistant, got = alter(tiny(), kind), ALTERED[kind][1]
    with (
        pytest.raises(TypeError, match=f"sparse_assistant: assistant: LM head: .*{got}"),
        sparse_assistant(assistant, target),
    ):
        pass
    assert not assistant._forward_pre_hooks


def test_nothing_stays_of_a_refusal(target: Any, assistant: Any) -> None:
    lm_head = assistant.get_output_embeddings()
    dense: Any = "dense"
    with (
        pytest.raises(ValueError, match="mode: expected"),
        sparse_assistant(assistant, target, mode=dense),
    ):
        pass
    assert assistant.get_output_embeddings() is lm_head
    assert not assistant._forward_pre_hooks
