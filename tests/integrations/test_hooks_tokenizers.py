# SPDX-License-Identifier: Apache-2.0
"""The tokenizer of an engine's model, found without network."""

from pathlib import Path
from typing import Any

import pytest

from microspec_kernels.integrations.hooks import local_tokenizer

tokenizers = pytest.importorskip("tokenizers")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    vocab = {"a": 0, "b": 1, "Ġthe": 2}
    tokenizers.Tokenizer(tokenizers.models.BPE(vocab, [])).save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_of_a_folder(folder: Path) -> None:
    assert local_tokenizer(str(folder)).get_vocab() == {"a": 0, "b": 1, "Ġthe": 2}  # type: ignore


def test_of_the_hubs_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    asked: list[Any] = []

    def cached(model: str, file: str, revision: str | None) -> str:
        asked.append((model, file, revision))
        return str(folder / file)

    monkeypatch.setattr(hub, "try_to_load_from_cache", cached)
    assert local_tokenizer("some/model", "v2") is not None
    assert asked == [("some/model", "tokenizer.json", "v2")]


def test_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert local_tokenizer(None) is None
    assert local_tokenizer(str(tmp_path)) is None
    (tmp_path / "tokenizer.json").write_text("{}")
    assert local_tokenizer(str(tmp_path)) is None
    assert "the tokenizer of" in caplog.text
