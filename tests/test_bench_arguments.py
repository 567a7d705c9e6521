# SPDX-License-Identifier: Apache-2.0
"""In bench, a wrong file, too little data or a wrong option gives one line and exit code 2."""

import importlib
import io
import json
import lzma
import sys
from pathlib import Path

import pytest

from bench.decoding import batches
from bench.harness.tiny_pair import unseen_prompts

TEXT = {"source": "gsm/a", "split": "test", "prompt": "a b", "response": "c"}


def lines(*rows: object) -> bytes:
    return lzma.compress("".join(json.dumps(row) + "\n" for row in rows).encode())


CORPORA = {
    "absent.xz": None,
    "empty.xz": b"",
    "text.xz": b"not an archive",
    "cut.xz": lines(*[TEXT | {"response": str(n) * 99} for n in range(99)])[:150],
    "words.xz": lzma.compress(b"a b c\n"),
    "list.xz": lines([1]),
    "no-split.xz": lines({"prompt": "a"}),
    "number.xz": lines(TEXT | {"split": 3}),
    "latin.xz": lzma.compress(b'{"prompt": "\xe9"}\n'),
    "none.xz": lines(),
    "few.xz": lines(TEXT, TEXT | {"prompt": None}, TEXT | {"split": "train"}),
}


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    for name, content in CORPORA.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)

    def call(program: str, *words: str) -> str:
        monkeypatch.setattr(sys, "argv", [program, *words])
        module = importlib.import_module(f"bench.{program}")
        with pytest.raises(SystemExit) as end:
            module.main()
        out, err = capsys.readouterr()
        assert (end.value.code, out) == (2, "")
        assert err.endswith("\n") and err.count("\n") == 1, err
        return err

    return call


class Words:
    """A tokenizer with one token per word and no vocabulary to load."""

    def encode(self, prompt: str) -> list[int]:
        return [len(word) for word in prompt.split()]


@pytest.fixture(autouse=True)
def no_pair(monkeypatch):
    """Fail if the models load before the error is reported."""

    def load(device: str = "cpu") -> None:
        raise AssertionError("the pair was loaded")

    for name in ("decoding.pair", "decoding.batches", "policy.pair"):
        module = importlib.import_module(f"bench.{name}")
        monkeypatch.setattr(module, "load_pair", load)
        monkeypatch.setattr(module, "Tekken", Words)


@pytest.mark.parametrize("program", ["decoding.pair", "decoding.batches", "policy.pair"])
@pytest.mark.parametrize("name", [*CORPORA, "folder"])
def test_a_corpus(name, program, refused):
    assert name in refused(program, "--corpus", name, "--prompts", "2")


@pytest.mark.parametrize("program", ["decoding.pair", "decoding.batches", "policy.pair"])
def test_more_prompts_than_there_are(program, refused):
    assert "--prompts: expected at most 8 without a --corpus, got 9" in refused(
        program, "--prompts", "9"
    )


def test_as_many_prompts_as_there_are(tmp_path):
    rows = [TEXT | {"prompt": "w " * n} for n in (1, 2, 300, 3)]
    (tmp_path / "corpus.xz").write_bytes(lines(*rows))
    found = unseen_prompts(tmp_path / "corpus.xz", Words(), 3)
    assert [len(ids) for ids in found] == [1, 2, 3]
    with pytest.raises(ValueError, match="expected 4 prompts of split test within 256 tokens, got"):
        unseen_prompts(tmp_path / "corpus.xz", Words(), 4)
    with pytest.raises(ValueError, match="expected 4 mixed prompts"):
        batches.prompts_by_task(tmp_path / "corpus.xz", Words(), 4)


@pytest.mark.parametrize(
    ("program", "words", "named"),
    [
        ("decoding.pair", "--prompts 0", "--prompts"),
        ("decoding.pair", "--new -1", "--new"),
        ("decoding.pair", "--temperature nan", "--temperature"),
        ("decoding.pair", "--tree-width 129", "--tree-width"),
        ("decoding.pair", "--depth 1.5", "--depth"),
        ("decoding.pair", "--prom 1", "--prom"),
        ("decoding.batches", "--new 0", "--new"),
        ("ops.head", "--rounds 0", "--rounds"),
        ("ops.head", "--model abacus", "abacus"),
        ("ops.head", "--mod toy", "--mod"),
        ("ops.head", "--quick --situations dance", "--situations"),
        ("ops.head", "--quick --arms dance", "--arms"),
        ("draft.step", "--context 4,x", "--context"),
        ("draft.step", "--model abacus", "abacus"),
        ("ops.compare_builds", "--num-tokens x", "--num-tokens"),
        ("ops.compare_builds", "--library absent.so", "absent.so"),
        ("ops.compare_builds", "--parts dance", "dance"),
        ("tuning.slab_in_l2", "--num-tokens 1,", "--num-tokens"),
        ("ops.int4_capacity", "--num-tokens 1,", "--num-tokens"),
        ("tuning.slab_in_l2", "--model abacus", "abacus"),
        ("plots.__main__", "absent", "absent"),
        ("plots.policy", "absent", "absent"),
        ("run", "--par head", "--par"),
        ("policy.traces", "absent.npz --frequent-tokens absent.npy", "absent.npy"),
        ("policy.traces", "absent.npz --freq absent.npy", "--freq"),
        ("policy.traces", "absent.npz --frequent-tokens none.npy", "none.npy"),
        ("tuning.kernel_variants", "run --jobs 0", "--jobs"),
    ],
)
def test_an_option(program, words, named, refused, tmp_path):
    import numpy as np

    file = io.BytesIO()
    np.save(file, np.arange(0))
    Path("none.npy").write_bytes(file.getvalue())
    assert named in refused(program, *words.split())
