# SPDX-License-Identifier: Apache-2.0
"""Steps of patched classes with the hook points' arguments: vLLM's model runner V1."""

from typing import Any

import torch

from microspec_kernels.integrations.vllm.drafter import drafter_of

from .fake_vllm_v1 import DIM, V, runner


def lists_of(runner: Any) -> Any:
    drafter = drafter_of(runner)
    assert drafter is not None and drafter.head.learning is not None
    return drafter.head.learning.lists


def active(runner: Any) -> set[int]:
    drafter = drafter_of(runner)
    assert drafter is not None
    return set(drafter.head.slot_tokens().flatten().tolist()) - {-1}


def test_from_prompt_to_drafts() -> None:
    with runner(capacity=8, target_top_k=1, learn=False) as vllm:
        vllm.join(a=[1, 2], b=[3])
        assert active(vllm) == {1, 2, 3}
        logits = torch.nn.functional.one_hot(torch.tensor([9, 10]), V).float()
        vllm.step([4, -1], [5, 6], logits=logits)
        assert active(vllm) == {1, 2, 3, 4, 5, 6, 9, 10}
        hidden = torch.randn(3, DIM)
        dense = vllm.drafter.model.compute_logits(hidden)
        tokens = torch.tensor(sorted(active(vllm)))
        want = tokens[dense[:, tokens].argmax(1)]
        assert torch.equal(vllm.drafter._greedy_sample(hidden), want)


def test_a_text_is_counted_once_in_whichever_row_it_stands() -> None:
    with runner(capacity=8) as vllm:
        vllm.join(a=[1], b=[2])
        vllm.step([5, 8], [6, 8])
        vllm.step([5, -1], [6, -1])
        vllm.join(finished=("a",), c=[3])  # b moves to the first row
        vllm.step([6, 7], [6, -1])
        counts = lists_of(vllm).text_counts[0]
        assert {token: int(counts[token]) for token in (5, 6, 7, 8)} == {5: 1, 6: 2, 7: 1, 8: 2}
        assert int(lists_of(vllm).num_texts.sum()) == 3


def test_numbers_of_requests_that_end_are_free_again() -> None:
    with runner(capacity=8, target_top_k=0) as vllm:
        for text in range(20):
            vllm.join(finished=(f"r{text - 1}",) if text else (), **{f"r{text}": [1]})
            vllm.step([5])
        assert int(lists_of(vllm).text_counts[0, 5]) == 20


def test_a_token_after_a_part_of_a_prompt_is_none_of_the_text() -> None:
    with runner(capacity=8, target_top_k=0) as vllm:
        vllm.join(a=[1], b=[2])
        vllm.discard_request_mask.np[0] = True
        vllm.step([20], [21])
        assert lists_of(vllm).text_counts[0].nonzero().flatten().tolist() == [21]
        assert 20 not in active(vllm)


def test_prompts_given_as_embeddings() -> None:
    with runner(capacity=8) as vllm:
        vllm.requests["a"] = type("Request", (), {"prompt_token_ids": None})()
        from microspec_kernels.integrations.vllm import v1

        vllm.input_batch.req_id_to_index["a"] = 0
        assert v1._text(vllm, "a").tolist() == []
