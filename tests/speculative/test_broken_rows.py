# SPDX-License-Identifier: Apache-2.0
"""A row of a draft's LM head with NaN or infinity disables its token only, with one warning."""

import copy
import logging
from typing import Any

import pytest
import torch

from microspec_kernels import ActiveVocab
from microspec_kernels.policy import TEXT, Policy
from microspec_kernels.speculative import (
    Dense,
    LMHead,
    ModelDraft,
    Sparse,
    Static,
    generate,
)

from .models import VOCAB, example, ranking

EVERY = torch.arange(VOCAB)
BROKEN = [77, 150]
VALUES = {"nan": torch.nan, "inf": torch.inf, "-inf": -torch.inf}


def broken(model: Any, value: float, tokens: list[int] = BROKEN) -> Any:
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.lm_head.weight[tokens, 3] = value
    return twin


@pytest.mark.parametrize("chain", [False, True], ids=["tree", "chain"])
@pytest.mark.parametrize("mode", ["indexed", "packed"])
@pytest.mark.parametrize("head", ["dense", "static", "sparse", "learned"])
@pytest.mark.parametrize("value", VALUES)
def test_a_draft_loses_its_broken_tokens_only(
    value: str, head: Any, mode: Any, chain: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """A copy of the target is still right everywhere; the text has none of the broken tokens."""
    model, text, truth = example("llama")
    assert not set(BROKEN) & set(truth.tolist())
    draft = broken(model, VALUES[value])
    learn, head = head == "learned", "sparse" if head == "learned" else head
    result = generate(
        model, draft, text, 31, head=head, mode=mode, capacity=VOCAB, frequent_tokens=EVERY,
        learn=learn, policy=Policy(TEXT, EVERY, () if learn else BROKEN), depth=5,
        tree_width=3 if not chain else 1, chain=chain,
    )  # fmt: skip
    assert result.tokens.tolist() == truth[:31].tolist()
    assert result.acceptance_lengths == [6] * 5
    assert set(result.stats.active_sizes) == {VOCAB - 2}
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == [
        "a draft's LM head [199, 32]: NaN or infinity in the rows of 2 tokens, which it never "
        "proposes: 77, 150"
    ]


def test_a_token_of_the_text_that_is_broken_is_a_miss() -> None:
    model, text, truth = example("llama")
    missing = [truth[8].item()]
    draft = broken(model, torch.nan, missing)
    result = generate(model, draft, text, len(truth), head="dense", depth=5, tree_width=1)
    assert result.tokens.tolist() == truth.tolist()
    hits = [token not in missing for token in truth.tolist()]
    assert result.stats.coverage == sum(hits[1:]) / (len(truth) - 1)
    assert result.stats.tau > 3


def test_it_is_said_once_for_a_draft(caplog: pytest.LogCaptureFixture) -> None:
    model, text, _ = example("llama")
    draft = ModelDraft(broken(model, torch.nan))
    for head in ("dense", "sparse", "static"):
        generate(model, draft, text, 4, head=head, frequent_tokens=EVERY)
    Dense(draft.lm_head)
    assert caplog.text.count("NaN or infinity") == 1
    with caplog.at_level(logging.WARNING):
        generate(model, ModelDraft(model), text, 4)
    assert caplog.text.count("NaN or infinity") == 1


def test_many_tokens_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    weight = torch.randn(VOCAB, 4)
    weight[10:40, 1] = torch.nan
    sound = LMHead(weight).sound()
    assert torch.equal(sound.to_rows(EVERY) < 0, (EVERY >= 10) & (EVERY < 40))
    assert "rows of 30 tokens, " in caplog.text
    assert caplog.text.rstrip().endswith(": 10, 11, 12, 13, 14, 15, 16, 17, ...")
    assert sound.sound() is sound


def test_a_broken_bias_and_rows_of_a_part() -> None:
    weight, bias = torch.randn(VOCAB, 4), torch.randn(VOCAB)
    bias[5] = torch.nan
    some = torch.tensor([9, 5, 3])
    for lm_head in (LMHead(weight, bias), LMHead(weight, bias).only(some)):
        assert lm_head.sound().to_rows(torch.tensor([5])).tolist() == [-1]
        assert torch.equal(lm_head.sound().to_rows(some)[[0, 2]], lm_head.to_rows(some)[[0, 2]])


def test_heads_of_ones_own() -> None:
    """Log-probabilities cover the sound tokens, as if the broken ones did not exist."""
    weight = torch.randn(VOCAB, 4, generator=torch.Generator().manual_seed(1))
    hidden = torch.randn(6, 4, generator=torch.Generator().manual_seed(2))
    weight[7] = torch.nan
    whole = [token for token in range(20) if token != 7]
    expected = (hidden.double() @ weight[whole].double().T).log_softmax(-1).topk(4)
    groups = torch.zeros(6, dtype=torch.int64)
    sparse = Sparse(LMHead(weight), ActiveVocab(VOCAB, 32))
    sparse.observe(EVERY[:20], EVERY[:20] * 0)
    for head in (Static(LMHead(weight), EVERY[:20]), sparse):
        log_probs, tokens = ranking(head, hidden, 4, groups)
        torch.testing.assert_close(log_probs, expected.values.float())
        assert torch.equal(tokens, torch.tensor(whole)[expected.indices])
        assert head.contains(EVERY[:20], groups[:1].expand(20)).nonzero()[:, 0].tolist() == whole
    dense = Dense(LMHead(weight))
    log_probs, tokens = ranking(dense, hidden, VOCAB, groups)
    assert not log_probs.isnan().any()
    assert (log_probs[:, -1] == -torch.inf).all() and (tokens[:, -1] == -1).all()
    torch.testing.assert_close(log_probs.exp().sum(1), torch.ones(6))
