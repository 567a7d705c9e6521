"""Programs of bench: a wrong file, too little data or a wrong option is one line, exit code 2."""

import importlib
import io
import json
import lzma
import sys
from pathlib import Path

import pytest

from bench import batches, e2e

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
    """A token a word; no vocabulary to load."""

    def encode(self, prompt: str) -> list[int]:
        return [len(word) for word in prompt.split()]


@pytest.fixture(autouse=True)
def no_pair(monkeypatch):
    """What is wrong is told before the models load."""

    def load(device: str = "cpu") -> None:
        raise AssertionError("the pair was loaded")

    for name in ("e2e", "batches", "policy_pair"):
        module = importlib.import_module(f"bench.{name}")
        monkeypatch.setattr(module, "load_pair", load)
        monkeypatch.setattr(module, "Tekken", Words)


@pytest.mark.parametrize("program", ["e2e", "batches", "policy_pair"])
@pytest.mark.parametrize("name", [*CORPORA, "folder"])
def test_a_corpus(name, program, refused):
    assert name in refused(program, "--corpus", name, "--prompts", "2")


@pytest.mark.parametrize("program", ["e2e", "batches", "policy_pair"])
def test_more_prompts_than_there_are(program, refused):
    assert "--prompts: expected at most 8 without a --corpus, got 9" in refused(
        program, "--prompts", "9"
    )


def test_as_many_prompts_as_there_are(tmp_path):
    rows = [TEXT | {"prompt": "w " * n} for n in (1, 2, 300, 3)]
    (tmp_path / "corpus.xz").write_bytes(lines(*rows))
    found = e2e.unseen_prompts(tmp_path / "corpus.xz", Words(), 3)
    assert [len(ids) for ids in found] == [1, 2, 3]
    with pytest.raises(ValueError, match="expected 4 prompts of split test within 256 tokens, got"):
        e2e.unseen_prompts(tmp_path / "corpus.xz", Words(), 4)
    with pytest.raises(ValueError, match="expected 4 mixed prompts"):
        batches.prompts_by_task(tmp_path / "corpus.xz", Words(), 4)


@pytest.mark.parametrize(
    ("program", "words", "named"),
    [
        ("e2e", "--prompts 0", "--prompts"),
        ("e2e", "--new -1", "--new"),
        ("e2e", "--temperature nan", "--temperature"),
        ("e2e", "--top-k 129", "--top-k"),
        ("e2e", "--depth 1.5", "--depth"),
        ("e2e", "--prom 1", "--prom"),
        ("batches", "--new 0", "--new"),
        ("head", "--rounds 0", "--rounds"),
        ("head", "--model abacus", "abacus"),
        ("head", "--mod toy", "--mod"),
        ("draft_step", "--context 4,x", "--context"),
        ("draft_step", "--model abacus", "abacus"),
        ("gpu", "--rows x", "--rows"),
        ("gpu", "--library absent.so", "absent.so"),
        ("gpu", "--parts dance", "dance"),
        ("gpu_l2", "--rows 1,", "--rows"),
        ("gpu_l2", "--model abacus", "abacus"),
        ("plots", "absent", "absent"),
        ("run", "--par head", "--par"),
        ("policy", "absent.npz --frequency-rank absent.npy", "absent.npy"),
        ("policy", "absent.npz --freq absent.npy", "--freq"),
        ("policy", "absent.npz --frequency-rank none.npy", "none.npy"),
        ("variants", "run --jobs 0", "--jobs"),
    ],
)
def test_an_option(program, words, named, refused, tmp_path):
    import numpy as np

    file = io.BytesIO()
    np.save(file, np.arange(0))
    Path("none.npy").write_bytes(file.getvalue())
    assert named in refused(program, *words.split())
