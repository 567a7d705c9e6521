# SPDX-License-Identifier: Apache-2.0
"""Whole steps at real shapes: the layers, what is counted, and the arithmetic of the figures."""

import csv
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_bench_draft import NoHost
from torch import Tensor

from bench.draft.heads import DraftHead, ObservedTokens
from bench.e2e import __main__ as e2e
from bench.e2e.decoder import Decoder, matrices
from bench.e2e.shapes import PAIRS, PUBLISHED, QUICK, Pair, Setting, bytes_of
from bench.e2e.step import Models, Step
from bench.harness.models import TOY
from bench.harness.sizes import K_BEST

SETTING = Setting(2, 24, 300, depth=2, size=8, seen=ObservedTokens(40, 16))


@pytest.fixture(scope="module")
def models() -> Models:
    torch.manual_seed(0)
    prepared = Models(QUICK, "cpu")
    prepared.prepare(SETTING, fuse=False)
    return prepared


def test_the_layers_are_attention_over_context_and_room() -> None:
    """Compare two passes of two texts with fp32 attention over all keys under one mask."""
    torch.manual_seed(1)
    texts, context, room, n = 2, 16, 7, 3
    decoder = Decoder(TOY, matrices(TOY, 2, "cpu"), texts, context, room)
    keys, values = decoder.keys.float(), decoder.values.float()
    first, second = (torch.randn(texts, n, TOY.dim).bfloat16() for _ in range(2))
    causal = torch.ones(n, n, dtype=torch.bool).tril().expand(texts, -1, -1)
    depths = torch.arange(n).expand(texts, -1)
    decoder(first, depths, causal)
    mask = torch.cat((torch.eye(n, dtype=torch.bool).expand(texts, -1, -1), causal), dim=2)
    mask[1, 2, 4] = False
    got = decoder(second, depths + n, mask)

    def plain(x: Tensor, depths: Tensor, before: list[tuple[Tensor, Tensor]], mask: Tensor) -> Any:
        seen = torch.cat((torch.ones(texts, n, context, dtype=torch.bool), mask), dim=2)
        new = []
        for index, (qkv, out, gate_up, down) in enumerate(decoder.layers):
            normed = F.rms_norm(x, (TOY.dim,), eps=1e-5)
            q, k, v = (
                (normed @ qkv.float().T)
                .view(texts, n, -1, TOY.head_dim)
                .split([TOY.heads, TOY.kv_heads, TOY.kv_heads], dim=2)
            )
            cos, sin = (t[context + depths][:, :, 0].float() for t in (decoder.cos, decoder.sin))
            half = TOY.head_dim // 2
            q, k = (
                t * cos[:, :, None]
                + torch.cat((-t[..., half:], t[..., :half]), -1) * sin[:, :, None]
                for t in (q, k)
            )
            new.append((k.transpose(1, 2), v.transpose(1, 2)))
            mixed = []
            for text in range(texts):
                heads = slice(text * TOY.kv_heads, (text + 1) * TOY.kv_heads)
                parts = [(keys[index, heads, :context], values[index, heads, :context])]
                parts += [(new[index][0][text], new[index][1][text])]
                parts += [(k[text], v[text]) for k, v in before[index : index + 1]]
                whole = [
                    torch.cat(each, dim=1).repeat_interleave(TOY.heads // TOY.kv_heads, dim=0)
                    for each in zip(*parts, strict=True)
                ]
                out_of = F.scaled_dot_product_attention(
                    q[text].transpose(0, 1), *whole, seen[text][None]
                )
                mixed.append(out_of.transpose(0, 1).flatten(1))
            x = x + torch.stack(mixed) @ out.float().T
            gate, up = (F.rms_norm(x, (TOY.dim,), eps=1e-5) @ gate_up.float().T).chunk(2, -1)
            x = x + (F.silu(gate) * up) @ down.float().T
        return x, new

    _, entries = plain(first.float(), depths, [], causal)
    want, _ = plain(second.float(), depths + n, entries, mask)
    assert F.cosine_similarity(got.float(), want, dim=2).min() > 0.9995
    assert (got.float() - want).abs().max() < 0.03 * want.abs().max()


def test_accepted_entries_move_behind_the_text(models: Models) -> None:
    decoder, paths = models.target, torch.tensor([[0, 3, 5], [0, 1, 0]])
    before = decoder.keys.clone()
    decoder.keep(paths, SETTING.size + 1)
    rows = before.unflatten(1, (2, TOY.kv_heads))[:, :, :, SETTING.context :]
    moved = decoder.keys.unflatten(1, (2, TOY.kv_heads))[:, :, :, SETTING.context - 3 :]
    for text in range(2):
        assert torch.equal(moved[:, text, :, :3], rows[:, text, :, paths[text]])
    assert torch.equal(decoder.keys[:, :, : SETTING.context - 3], before[:, :, :-12])


def test_the_bytes_are_those_of_the_tensors(models: Models) -> None:
    target, draft = models.target, models.draft
    context = slice(0, SETTING.context)

    def held(decoder: Decoder) -> int:
        weights = sum(weight.nbytes for layer in decoder.layers for weight in layer)
        caches = (decoder.keys[:, :, context], decoder.values[:, :, context])
        return weights + sum(part.numel() * 2 for part in caches)

    row, depth = 2 * TOY.dim, SETTING.depth
    assert bytes_of(QUICK, SETTING, "packed") == {
        "target": held(target) + models.lm_head.nbytes,
        "layer": depth * (held(draft) + models.fc.nbytes),
        "head": depth * SETTING.capacity * row,
        "gather": 2 * 2 * 16 * row,
    }
    assert bytes_of(QUICK, SETTING, "dense")["head"] == depth * models.lm_head.nbytes
    assert sum(bytes_of(QUICK, SETTING, e2e.ALONE).values()) == held(target) + models.lm_head.nbytes


def test_a_step_runs_and_nothing_of_it_goes_to_the_host(models: Models) -> None:
    """The head sees the features of the whole frontier, in rows that are padded behind it."""
    for arm, make in e2e.heads(models, SETTING).items():
        head, rows = make(), []
        best = head.best

        def noted(features: Tensor, n: int, best: Any = best, rows: Any = rows) -> Any:
            rows.append((n, len(features)))
            return best(features, n)

        head.best = noted  # type: ignore[method-assign]
        every = e2e.variants(arm)
        for without in every.values() if arm == "packed" else [every[e2e.WHOLE]]:
            step = Step(models, SETTING, head, arm == "packed", without)
            with NoHost():
                tokens = step()
            assert tokens.shape == (2, SETTING.accepted)
            assert (tokens[:, 0] >= 0).all(), "the target always adds a token"
        assert set(rows) == {(2, 16), (2 * K_BEST, 32)}


def test_a_draft_that_is_right_is_accepted(models: Models) -> None:
    """Let the target choose what the head proposes: a whole path of the tree is accepted."""
    step = Step(models, SETTING, DraftHead(TOY, models.lm_head), False, frozenset({"target"}))
    step()

    def agreeable(tree: Any) -> tuple[Tensor, Tensor]:
        chosen = torch.full_like(tree.tokens, -1)
        chosen[:, 0] = tree.tokens[:, 1]  # the root's first child
        chosen[:, 1] = 7
        return chosen, step.hidden

    step._verify = agreeable  # type: ignore[method-assign]
    tokens = step()
    assert (tokens[:, 1] == 7).all() and step.counts.tolist() == [2, 2]
    assert torch.equal(step.text[:, 1], torch.tensor([7, 7]))


def known(seconds: Mapping[tuple[str, str], float]) -> Any:
    """Return a stand-in for `time_rounds` that calls each graph once."""

    def times(replays: Mapping[tuple[str, str], Any], rounds: int) -> Any:
        for replay in replays.values():
            replay.run()
        return {name: [seconds.get(name, 1.0)] * rounds for name in replays}

    return times


def test_tokens_a_second_of_known_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = {
        "dense": 0.040,
        "dense nvfp4": 0.030,
        "static 32k": 0.025,
        "NanoSpec": 0.024,
        "indexed": 0.021,
        "packed": 0.02,
    }
    seconds = {(arm, "step"): time for arm, time in step.items()} | {(e2e.ALONE, "step"): 0.010}
    # Without the gather, and without the gather and the update.
    seconds |= {("packed", "gather"): 0.018, ("packed", "vocabulary"): 0.0175}
    seconds |= {("packed", part): 0.015 for part in ("target", "layer", "head")}
    monkeypatch.setattr(e2e, "time_rounds", known(seconds))
    words = ["e2e", "--quick", "--out", tmp_path, "--tau", "dense=4,packed=3", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", list(map(str, words)))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    e2e.main()
    with open(tmp_path / "e2e_shapes.csv", newline="") as file:
        lines = {(line["arm"], line["part"]): line for line in csv.DictReader(file)}

    def of(arm: str, name: str, part: str = "step") -> float:
        return float(lines[arm, part][name])

    assert of(e2e.ALONE, "tokens_per_s") == pytest.approx(2 * 1 / 0.010)
    assert of("dense", "tokens_per_s") == pytest.approx(2 * 4 / 0.040)
    assert of("packed", "tokens_per_s") == pytest.approx(2 * 3 / 0.020)
    assert of("static 32k", "tau") == PUBLISHED["static 32k"]
    assert of("packed", "over_alone") == pytest.approx(300 / 200)
    assert of("packed", "over_dense") == pytest.approx(300 / 200)
    assert of("packed", "over_dense_at_equal_tau") == pytest.approx(2)
    assert of("packed", "p50_us", "gather") == pytest.approx(2000)
    assert of("packed", "p50_us", "vocabulary") == pytest.approx(500)
    assert of("packed", "p50_us", "head") == pytest.approx(5000)
    rest = 20000 - 3 * 5000 - 2000 - 500
    assert of("packed", "p50_us", "rest") == pytest.approx(rest)
    assert lines["packed", "step"]["tau_from"] == "--tau"
    report = (tmp_path / "e2e_shapes.md").read_text()
    assert report.startswith("# Steps at real shapes: ") and "| toy | 2 | 64 | packed | " in report


def test_the_floor_is_computed(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["e2e", "--floor", "1000", "--context", "1024"])
    e2e.main()
    out = capsys.readouterr().out
    assert out.startswith("Computed from bytes at 1000 GB/s; nothing was measured.")
    total = sum(bytes_of(PAIRS["Llama-3.1-8B"], Setting(1, 1024, 3072), "dense").values())
    assert (
        f"| Llama-3.1-8B | 1 | 1024 | dense | {total / 1e6:.4g} | {total / 1e9:.4g} | 3.8 |" in out
    )


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_the_bytes_in_the_results_are_computed(pair: Pair) -> None:
    text = (Path(__file__).parents[1] / "bench" / "RESULTS.md").read_text()
    text = text[text.index("`python -m bench.e2e`") :]
    (line,) = re.findall(rf"^\| {re.escape(pair.name)} \|.*$", text, re.MULTILINE)
    dense, fixed, ours = (
        bytes_of(pair, Setting(1, 1024, 3072), arm) for arm in ("dense", "static 32k", "packed")
    )
    parts = dense["target"], dense["layer"], dense["head"], fixed["head"], ours["head"]
    cells = [f"{part / 1e9:.2f}" for part in parts]
    for context in (1024, 8192):
        for texts in (1, 8):
            total = {
                arm: sum(bytes_of(pair, Setting(texts, context, 3072), arm).values())
                for arm in ("dense", "packed")
            }
            cells.append(f"{total['dense'] / total['packed']:.2f}")
    assert line == f"| {pair.name} | {' | '.join(cells)} |"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "real shapes need a GPU"),
        (["--quick", "--tau", "packed=0.5"], "--tau: expected ARM=TAU with dense, .*'packed=0.5'"),
        (["--quick", "--tau", "slab=3"], "--tau: expected ARM=TAU .* got 'slab=3'"),
        (["--pairs", "GPT-2"], "--pairs: no such pair: GPT-2"),
        (["--quick", "--arms", "slab"], "--arms: no such arm; there are dense"),
    ],
)
def test_refused(
    words: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(sys, "argv", ["e2e", *words])
    with pytest.raises(SystemExit):
        e2e.main()
    assert torch.cuda.is_available() or re.search(message, capsys.readouterr().err)
