# SPDX-License-Identifier: Apache-2.0
"""A text file as a trace, and the plot."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from microspec_kernels import replay
from microspec_kernels.cli import main
from microspec_kernels.policy import TEXT, Policy

WORDS = ["the", "The", "Ġthe", "ĠThe", "cat", "Ġcat", "Ċ", "é", "Ã", "Ã©", "Ã©t"]


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    """Make a byte-level tokenizer, one token per word or byte.

    "é" begins no byte-level piece, but "Ã©" does.
    """
    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(w for w in WORDS if len(w) > 1)]
    merges = [
        ("t", "h"), ("th", "e"), ("T", "h"), ("Th", "e"), ("Ġ", "the"), ("Ġ", "The"),
        ("c", "a"), ("ca", "t"), ("Ġ", "cat"), ("Ã", "©"), ("Ã©", "t"),
    ]  # fmt: skip
    pieces += [a + b for a, b in merges if a + b not in pieces]
    loaded = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, merges))
    loaded.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    loaded.decoder = decoders.ByteLevel()
    loaded.add_special_tokens([AddedToken("<|end|>")])
    end = [("<|end|>", loaded.token_to_id("<|end|>"))]
    loaded.post_processor = processors.TemplateProcessing(single="$A <|end|>", special_tokens=end)
    path = tmp_path / "tokenizer.json"
    loaded.save(str(path))
    return path


def test_a_text_is_one_sequence(tokenizer: Path, tmp_path: Path) -> None:
    loaded = replay.load_tokenizer(tokenizer)
    file = tmp_path / "story.txt"
    file.write_text("the cat The cat the", encoding="utf-8")
    trace = replay.load_text(file, loaded, prompt_tokens=2)
    assert trace.name == "story" and list(trace.offsets) == [0, 5]
    words = [loaded.id_to_token(token) for token in trace.tokens.tolist()]
    assert words == ["the", "Ġcat", "ĠThe", "Ġcat", "Ġthe"]
    assert trace.generated.tolist() == [False, False, True, True, True]
    with pytest.raises(ValueError, match="load_text: prompt_tokens: expected at least 0, got -1"):
        replay.load_text(file, loaded, prompt_tokens=-1)
    file.write_text("", encoding="utf-8")
    empty = replay.load_text(file, loaded)
    assert replay.replay(empty, Policy(TEXT), vocab_size=300).tokens == 0


def test_a_jsonl_is_a_sequence_a_line(tokenizer: Path, tmp_path: Path) -> None:
    file = tmp_path / "chat.jsonl"
    lines = [{"prompt": "the cat", "response": " the"}, {"prompt": "", "response": "cat", "id": 3}]
    file.write_text("\n\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")
    trace = replay.load_text(file, replay.load_tokenizer(tokenizer), prompt_tokens=9)
    assert list(trace.offsets) == [0, 3, 4]
    assert trace.generated.tolist() == [False, False, True, True]


@pytest.mark.parametrize("line", ["{", "[1]", '{"prompt": "a"}', '{"prompt": 1, "response": "a"}'])
def test_a_line_that_is_no_pair_is_named(line: str, tokenizer: Path, tmp_path: Path) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text('{"prompt": "a", "response": "b"}\n' + line, encoding="utf-8")
    with pytest.raises(ValueError, match=r"bad\.jsonl:2: expected an object with texts"):
        replay.load_text(file, replay.load_tokenizer(tokenizer))


def test_a_line_ends_where_json_lines_do(tokenizer: Path, tmp_path: Path) -> None:
    """Lines do not end at the other ends of `str.splitlines`, which a text may contain."""
    file = tmp_path / "separators.jsonl"
    file.write_text('{"prompt": "a\u2028b", "response": "c\x85d"}\n', encoding="utf-8")
    trace = replay.load_text(file, replay.load_tokenizer(tokenizer))
    assert trace.offsets == [0, len(trace.tokens)]
    assert 0 < int(trace.generated.sum()) < len(trace.tokens)


def test_not_a_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text("{}")
    with pytest.raises(ValueError, match=r"t\.json: expected a tokenizer\.json"):
        replay.load_tokenizer(tmp_path / "t.json")


def test_on_the_command_line(
    tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The prompt covers " cat" but not "The"."""
    text, out = tmp_path / "story.txt", tmp_path / "out.json"
    text.write_text("the cat The cat", encoding="utf-8")
    options = ["--tokenizer", str(tokenizer), "--prompt-tokens", "2", "--json", str(out)]
    command = ["replay", "--text", str(text), "--no-learn", "--no-fill", *options]
    assert main(command) == 0
    (figures,) = json.loads(out.read_text())
    assert (figures["coverage"], figures["policy"]) == (0.5, "prompt+generated")
    capsys.readouterr()
    text.write_text("", encoding="utf-8")
    assert main(command) == 2
    assert "story.txt: expected generated tokens, got 0 given" in capsys.readouterr().err
    assert main(["replay", "--text", str(text)]) == 2
    assert "--tokenizer" in capsys.readouterr().err


def result(capacity: int, policy: str) -> replay.Replay:
    trace = replay.Trace("made", torch.arange(40) % 7, torch.arange(40) > 3, [0, 40])
    sources = {"all": TEXT, "written": TEXT[1:]}[policy]
    return replay.replay(trace, Policy(sources), vocab_size=9, capacity=capacity)


def test_plot_has_a_curve_a_policy_and_a_point_a_capacity(tmp_path: Path) -> None:
    results = [result(k, policy) for policy in ("all", "written") for k in (2, 4, 8)]
    path, again = tmp_path / "a.svg", tmp_path / "b.svg"
    replay.plot(results, path)
    replay.plot(results, again)
    assert path.read_bytes() == again.read_bytes()
    svg = path.read_text()
    for label in ("made: prompt+generated", "made: generated", "mean active tokens", "coverage"):
        assert label in svg
    assert svg.count("<use") >= 6
    with pytest.raises(ValueError, match="plot: results: expected at least one"):
        replay.plot([], path)


def test_a_curve_s_points_are_size_and_coverage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[list[float], list[float]]] = []
    plot = Axes.plot

    def noted(self: Axes, x: list[float], y: list[float], **options: object) -> object:
        drawn.append((list(x), list(y)))
        return plot(self, x, y, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Axes, "plot", noted)
    results = [result(k, "all") for k in (8, 2, 4)]
    replay.plot(results, tmp_path / "a.svg")
    expected = sorted((one.mean_active, one.coverage) for one in results)
    ((sizes, shares),) = drawn
    assert list(zip(sizes, shares, strict=True)) == expected and len(set(shares)) > 1


def test_plot_on_the_command_line(tmp_path: Path) -> None:
    trace, path = tmp_path / "made.npz", tmp_path / "made.svg"
    np.savez(trace, tokens=np.arange(40) % 7, generated=np.arange(40) > 3, offsets=[0, 40])
    assert main(["replay", str(trace), "--capacity", "2,8", "--plot", str(path)]) == 0
    assert "made: prompt+generated" in path.read_text()
