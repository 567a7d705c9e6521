# SPDX-License-Identifier: Apache-2.0
"""The file of learned lists: what is written is read, whole or not at all, by what it fits."""

import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer, models

from microspec_kernels.policy import LearnedFile, LearnedLists, tokenizer_fingerprint

V = 50


def learned(seed: int = 0, num_lists: int = 3) -> LearnedLists:
    lists = LearnedLists(V, num_lists=num_lists)
    rng = torch.Generator().manual_seed(seed)
    for _ in range(12):
        lists.begin(0, torch.randint(0, V, (9,), generator=rng))
        lists.count(torch.randint(0, V, (20,), generator=rng))
    return lists


def assert_same(got: LearnedLists, want: LearnedLists) -> None:
    for name, tensor in want.state_dict().items():
        assert torch.equal(got.state_dict()[name], tensor), name
    assert torch.equal(got.total_counts, want.total_counts)


def test_lists_continue_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "learned.safetensors"
    lists = learned()
    LearnedFile(lists, path, tokenizer="abc").save()
    again = LearnedLists(V, num_lists=3)
    LearnedFile(again, path, tokenizer="abc")
    assert_same(again, lists)
    for both in (lists, again):  # what is learned afterwards is the same, too
        both.begin(0, torch.tensor([1, 2, 3]))
        both.count(torch.tensor([4, 5]))
    assert_same(again, lists)
    assert os.listdir(tmp_path) == ["learned.safetensors"]


def test_nothing_but_counts_is_stored(tmp_path: Path) -> None:
    path = tmp_path / "learned.safetensors"
    LearnedFile(learned(), path).save()
    with safe_open(path, framework="pt") as file:
        names = {"text_counts": [3, V], "prompt_counts": [3, V], "num_texts": [3]}
        assert {name: list(file.get_tensor(name).shape) for name in file.keys()} == names  # noqa: SIM118
        assert set(file.metadata()) == {"format", "vocab_size", "num_lists", "tokenizer"}


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({"vocab_size": V + 1}, "expected vocab_size 51, got 50"),
        ({"num_lists": 2}, "expected num_lists 2, got 3"),
        ({"tokenizer": "b"}, "expected tokenizer b, got a"),
        ({"tokenizer": ""}, "expected tokenizer none, got a"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(
    other: dict[str, object], reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "learned.safetensors"
    LearnedFile(learned(), path, tokenizer="a").save()
    before = path.read_bytes()
    at = {"vocab_size": V, "num_lists": 3, "tokenizer": "a", **other}
    lists = LearnedLists(at["vocab_size"], num_lists=at["num_lists"])
    with pytest.raises(ValueError, match=f"learned.safetensors: {reason}"):
        LearnedFile(lists, path, tokenizer=at["tokenizer"])
    assert path.read_bytes() == before


@pytest.mark.parametrize("kind", ["text", "empty", "half", "others", "negative", "dtype"])
def test_a_damaged_file_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "learned.safetensors"
    LearnedFile(learned(), path).save()
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    state = learned().state_dict()
    match kind:
        case "text":
            path.write_text("counts")
        case "empty":
            path.write_bytes(b"")
        case "half":
            path.write_bytes(path.read_bytes()[:300])
        case "others":
            save_file({"weight": torch.ones(3)}, path, metadata=metadata)
        case "negative":
            save_file({**state, "text_counts": -state["text_counts"]}, path, metadata=metadata)
        case "dtype":
            save_file({**state, "num_texts": state["num_texts"].int()}, path, metadata=metadata)
    lists = LearnedLists(V, num_lists=3)
    with pytest.raises(ValueError, match=r"learned\.safetensors: "):
        LearnedFile(lists, path)
    assert_same(lists, LearnedLists(V, num_lists=3))


def test_no_folder_and_a_folder_in_the_way_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent"):
        LearnedFile(learned(), tmp_path / "absent" / "learned.safetensors")
    (tmp_path / "learned.safetensors").mkdir()
    with pytest.raises((OSError, ValueError), match=r"learned\.safetensors"):
        LearnedFile(learned(), tmp_path / "learned.safetensors")


def test_polls_write_at_the_interval_in_the_background(tmp_path: Path) -> None:
    path, lists = tmp_path / "learned.safetensors", learned()
    file = LearnedFile(lists, path, interval=0.2)
    file.poll()
    assert not path.exists()  # too early
    time.sleep(0.25)
    file.poll()
    want = learned()
    lists.count(torch.tensor([7, 8, 9]))  # later than the write, whichever is faster
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and thread.daemon:
            thread.join(5)
    again = LearnedLists(V, num_lists=3)
    LearnedFile(again, path)
    assert_same(again, want)


def test_a_write_that_fails_is_logged_and_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "learned.safetensors"
    file = LearnedFile(learned(), path, interval=0.0)
    file.save()
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    file.lists.count(torch.arange(20))
    with caplog.at_level(logging.WARNING):
        file.poll()
        file._writer.join()
    assert "learned.safetensors: the learned lists were not written" in caplog.text
    with pytest.raises(OSError, match="No space left"):
        file.save()
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["learned.safetensors"]


@pytest.mark.parametrize("forks", [False, True])
def test_the_file_is_written_at_exit(forks: bool, tmp_path: Path) -> None:
    """A child that a fork made does not write: its counts are not the server's."""
    path = tmp_path / "learned.safetensors"
    program = f"""
import os, sys, torch
from microspec_kernels.policy import LearnedFile, LearnedLists
lists = LearnedLists(50, num_lists=3)
file = LearnedFile(lists, {str(path)!r})
lists.begin(0, torch.tensor([1]))
if {forks} and os.fork() == 0:
    sys.exit()
if {forks}:
    os.wait()
    assert not os.path.exists({str(path)!r})
lists.count(torch.tensor([4]))
"""
    subprocess.run([sys.executable, "-c", program], check=True)
    lists = LearnedLists(V, num_lists=3)
    LearnedFile(lists, path)
    assert lists.text_counts.nonzero().tolist() == [[0, 4]]


def test_fingerprints_tell_tokenizers_apart() -> None:
    def tokenizer(*tokens: str) -> Tokenizer:
        return Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, tokens[0]))

    first = tokenizer_fingerprint(tokenizer("a", "b"))
    assert first == tokenizer_fingerprint(tokenizer("a", "b"))
    others = [tokenizer_fingerprint(tokenizer(*t)) for t in (("b", "a"), ("a",), ("a", "b", "c"))]
    assert len({first, *others}) == 4
