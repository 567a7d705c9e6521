# SPDX-License-Identifier: Apache-2.0
"""MTP drafts of several modules: the d-th drafted token is module d's."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from microspec_kernels.speculative import (
    Batch,
    CausalModel,
    MtpDraft,
    Request,
    generate,
    load_draft,
)

from .models import VOCAB, greedy, prompt
from .mtp import write
from .mtp_modules import SEVERAL, PlainModules, joined, parts, prefix_of, written
from .schedule import Text, run
from .test_eagle3 import First, close
from .test_mtp import before_of, example, helpful, is_known, predictable

KINDS = [name for name in SEVERAL if is_known(name)]
MODULES = 3
DEPTH = 5


@pytest.fixture
def target() -> CausalModel:
    return CausalModel(example()[0])


def loaded(name: str, folder: Path, target: CausalModel) -> tuple[MtpDraft, PlainModules]:
    states = parts(name, MODULES)
    draft = load_draft(written(folder, name, states), target)
    assert isinstance(draft, MtpDraft) and len(draft.layers) == MODULES
    return draft, PlainModules(name, states, target)


@torch.no_grad()
@pytest.mark.parametrize("name", KINDS)
def test_features_equal_the_formula(name: str, tmp_path: Path, target: CausalModel) -> None:
    """Read a text in two parts; draft siblings, cousins and their children; then read more."""
    (model, text, _), (draft, plain) = example(), loaded(name, tmp_path, target)
    hidden, before = target.prefill(text[0], target.new_cache())[0], before_of(name, model, text[0])

    def expected(length: int, *path: int) -> torch.Tensor:
        return plain.features(text[0, :length], before[: length - 1], list(path))

    cache = draft.new_cache()
    draft.extend(text[:, :6], hidden[None, :5], torch.tensor([6]), cache)
    feature = draft.extend(text[:, 6:9], hidden[None, 5:8], torch.tensor([3]), cache)
    close(draft.head_input(feature)[0], expected(9))

    # Level by level: [3, 5], [9 below 5, 9 below 3], [2 below the latter], [4], the last two with
    # the last module again.
    itself, mask = torch.eye(2, dtype=torch.bool)[None], cache.mask()
    mask = torch.cat((itself, mask.expand(-1, 2, -1)), dim=2)
    parents = feature[None].expand(1, 2, -1)
    first = draft.step(torch.tensor([[3, 5]]), parents, cache.ahead(1), mask, cache)
    close(first[0], torch.stack([expected(9, 3), expected(9, 5)]))
    mask = torch.cat((itself, mask.flip(1)), dim=2)
    second = draft.step(torch.tensor([[9, 9]]), first.flip(1), torch.tensor([[9]]), mask, cache)
    close(second[0], torch.stack([expected(9, 5, 9), expected(9, 3, 9)]))
    one = itself[:, :1, :1]
    mask = torch.cat((one, mask[:, 1:]), dim=2)
    third = draft.step(torch.tensor([[2]]), second[:, 1:], torch.tensor([[10]]), mask, cache)
    close(third[0, 0], expected(9, 3, 9, 2))
    mask = torch.cat((one, mask), dim=2)
    fourth = draft.step(torch.tensor([[4]]), third, torch.tensor([[11]]), mask, cache)
    close(fourth[0, 0], expected(9, 3, 9, 2, 4))

    cache.drop()
    feature = draft.extend(text[:, 9:], hidden[None, 8:11], torch.tensor([3]), cache)
    close(draft.head_input(feature)[0], expected(12))
    step = feature[:, None], torch.tensor([[11]]), torch.cat((one, cache.mask()), dim=2)
    close(draft.step(torch.tensor([[7]]), *step, cache)[0, 0], expected(12, 7))


@torch.no_grad()
def test_a_long_text_is_read_in_pieces(
    tmp_path: Path, target: CausalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    draft, text = loaded(KINDS[0], tmp_path, target)[0], prompt(23)
    hidden = target.prefill(text[0], target.new_cache())[0][None, :-1]
    whole = draft.extend(text, hidden, torch.tensor([23]), draft.new_cache())
    monkeypatch.setattr("microspec_kernels.speculative.models.draft.CHUNK", 5)
    pieces = draft.extend(text, hidden, torch.tensor([23]), draft.new_cache())
    close(pieces, whole.double())


@pytest.mark.parametrize("length", [1, 2, 12])
@pytest.mark.parametrize("chain", [False, True], ids=["tree", "chain"])
@pytest.mark.parametrize("name", KINDS[:1] + KINDS[-1:])
def test_the_loop_drafts_what_the_formula_does(
    name: str,
    chain: bool,
    length: int,
    tmp_path: Path,
    target: CausalModel,
) -> None:
    """Compare the likeliest tokens, below a prompt as short as can be and a longer text."""
    (model, text, _), (draft, plain) = example(), loaded(name, tmp_path, target)
    text = text[:, :length]
    truth = greedy(model, text, 12)
    whole = torch.cat((text[0], truth))
    before = before_of(name, model, whole)
    spy = Logits(draft) if chain else First(draft)
    result = generate(
        target, draft, text, len(truth), head=spy, depth=DEPTH, tree_width=1, chain=chain
    )
    assert result.tokens.tolist() == truth.tolist()
    for step in (0, 3):
        newest = length + sum(result.acceptance_lengths[:step])
        expected = plain.chain(whole[: newest + 1], before[:newest], DEPTH)
        assert spy.first[step * DEPTH :][:DEPTH] == expected


class Logits(First):
    """Record the first choice of every draw of a chain."""

    def logits(self, hidden: torch.Tensor, row_groups: torch.Tensor) -> Any:
        logits, ids = super().logits(hidden, row_groups)
        self.first.append(int(logits[0].argmax()))
        return logits, ids


@pytest.mark.parametrize("name", KINDS)
def test_the_output_is_the_targets(name: str, tmp_path: Path) -> None:
    """With K = V the sparse head accepts as the dense one; module by module it is helpful."""
    model, text = predictable(), prompt(12)
    target, truth = CausalModel(model), greedy(model, text, 16)
    draft = load_draft(written(tmp_path, name, [helpful(name, target)] * MODULES), target)
    for chain in (False, True):
        lengths = []
        for head, capacity in (("dense", 1), ("sparse", VOCAB)):
            result = generate(
                target, draft, text, 16, head=head, capacity=capacity, depth=DEPTH, tree_width=4,
                tree_size=12, chain=chain, frequent_tokens=range(VOCAB),
            )  # fmt: skip
            assert result.tokens.tolist() == truth.tolist()
            lengths.append(result.acceptance_lengths)
        assert lengths[0] == lengths[1]
        assert len(lengths[0]) < 15, "a draft that is never right compares nothing"


@pytest.mark.parametrize("chain", [False, True], ids=["tree", "chain"])
def test_texts_that_join_leave_and_move_draft_as_alone(
    chain: bool,
    tmp_path: Path,
    target: CausalModel,
) -> None:
    """A text's features are those of all modules, and rest on what its row has kept."""
    name = KINDS[-1]
    draft = load_draft(
        written(tmp_path, name, [helpful(name, target, seed) for seed in range(MODULES)]), target
    )
    shape: dict[str, Any] = {"depth": DEPTH, "tree_width": 3, "tree_size": 9, "head": "dense"}

    def seen(texts: list[Text]) -> list[list[torch.Tensor]]:
        batch = Batch(target, draft, chain=chain, **shape)
        features: dict[Request, list[torch.Tensor]] = {}

        def note(there: dict[Request, Text]) -> None:
            for request in there:
                row = batch._texts.features[request.row]
                features.setdefault(request, []).append(row.clone())

        requests = run(batch, texts, note)
        return [features[request] for request in requests]

    texts = [Text(9, 4), Text(21, 12), Text(4, 12), Text(14, 5, joins=2), Text(1, 9, joins=3)]
    for together, text in zip(seen(texts), texts, strict=True):
        (alone,) = seen([replace(text, joins=0)])
        close(torch.stack(together), torch.stack(alone).double())


def test_modules_with_an_lm_head_each_are_refused(tmp_path: Path, target: CausalModel) -> None:
    for rows in ("shared_head.head.weight", "embed_tokens.weight"):
        states = parts("glm", 2)
        states[1] = dict(states[1])
        states[1][f"{prefix_of('glm', 0)}{rows}"] = torch.ones(VOCAB, 32)
        written(tmp_path, "glm", states)
        name = rows.replace("shared_head.head", "lm_head")
        message = f"{name}: expected the same in all 2 MTP modules, .* other rows in module 1"
        with pytest.raises(ValueError, match=message):
            load_draft(tmp_path, target)


def test_modules_that_do_not_fit(tmp_path: Path, target: CausalModel) -> None:
    states = parts("glm", 2)

    def refused(message: str, name: str = "glm", **changes: Any) -> None:
        with pytest.raises(ValueError, match=f"load_draft: .*{message}"):
            load_draft(written(tmp_path, name, states, **changes), target)

    refused("num_nextn_predict_layers: expected 2, got 1", num_nextn_predict_layers=1)
    refused("num_hidden_layers: expected 46, .* got 45", num_hidden_layers=45)
    refused(
        "mtp_layer_types: expected one of full_attention and sliding_attention, got .*'full",
        mtp_layer_types=["sliding_attention", "full_attention"],
    )
    dense = {part: weight for part, weight in states[1].items() if ".experts." not in part}
    states[1] = dense
    refused("experts: expected experts in all 2 MTP modules or in none, got them in some")
    if is_known("mimo"):
        states = parts("mimo", 3)
        whole = joined("mimo", states)
        (tmp_path / "model.safetensors").unlink()
        names = {part: weight for part, weight in whole.items() if "layers.0." not in part}
        message = "expected model.mtp_layers.0. first, got model.mtp_layers.1."
        with pytest.raises(ValueError, match=re.escape(message)):
            load_draft(write(tmp_path, "mimo", names, num_nextn_predict_layers=2), target)
