# SPDX-License-Identifier: Apache-2.0
"""The one function that reads a caller's list of token ids, or a file of them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from microspec_kernels._token_ids import read_token_ids, token_ids

WELL_FORMED: list[Any] = [
    [7, 2, 9],
    (7, 2, 9),
    torch.tensor([7, 2, 9]),
    torch.tensor([7, 2, 9], dtype=torch.uint8),
    torch.tensor([7, 2, 9], dtype=torch.uint16),
    torch.tensor([9, 2, 7]).flip(0),
    np.array([7, 2, 9], dtype=">i4"),
    np.array([7, 2, 9], dtype=np.uint64),
    [np.int32(7), torch.tensor(2), 9],
]


@pytest.mark.parametrize("ids", WELL_FORMED, ids=repr)
def test_integers_of_any_kind(ids: Any) -> None:
    tokens = token_ids("list", ids, 10)
    assert tokens.dtype == torch.int64
    assert tokens.tolist() == [7, 2, 9]


@pytest.mark.parametrize("ids", [[], (), torch.tensor([]), np.array([])], ids=repr)
def test_nothing_has_no_dtype(ids: Any) -> None:
    assert token_ids("list", ids, 10).tolist() == []


@pytest.mark.parametrize(
    "ids, kind, message",
    [
        ([7, 2**32 + 5], ValueError, r"ids in \[0, 100\), got 4294967301 at position 1"),
        ([7, 2**70], ValueError, f"ids that int64 holds, got {2**70}"),
        (np.array([7, 2**64 - 1], dtype=np.uint64), ValueError, f"got {2**64 - 1}"),
        ([7, -1], ValueError, r"ids in \[0, 100\), got -1 at position 1"),
        (torch.tensor([100]), ValueError, r"ids in \[0, 100\), got 100 at position 0"),
        ([5, 7, 5], ValueError, "distinct ids, got 5 2 times"),
        (torch.tensor([1.7, 2.2]), TypeError, "integer ids, got float32"),
        (torch.tensor([1.0]).bfloat16(), TypeError, "integer ids, got bfloat16"),
        (np.array([1.0]), TypeError, "integer ids, got float64"),
        ([1, 2.0], TypeError, "integer ids, got float"),
        (torch.tensor([True, False]), TypeError, "integer ids, got bool"),
        (np.array([True, False]), TypeError, "integer ids, got bool"),
        ([True, False], TypeError, "integer ids, got bool"),
        ([torch.tensor(True)], TypeError, "integer ids, got Tensor"),
        ([torch.tensor(1.5)], TypeError, "integer ids, got Tensor"),
        (["1"], TypeError, "integer ids, got str"),
        ("12", TypeError, "a list of integer ids, got str"),
        (12, TypeError, "a list of integer ids, got int"),
        (torch.tensor([[1, 2]]), ValueError, r"shape \[n\], got \[1, 2\]"),
        (torch.tensor(3), ValueError, r"shape \[n\], got \[\]"),
        ([[1, 2]], TypeError, "integer ids, got list"),
    ],
    ids=repr,
)
def test_anything_else_is_refused(ids: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=f"^list: expected .*{message}"):
        token_ids("list", ids, 100)


def _write(path: Path, ids: list[int]) -> None:
    match path.suffix:
        case ".npy":
            np.save(path, np.array(ids, dtype=np.int32))
        case ".json":
            path.write_text(json.dumps(ids))
        case _:
            torch.save(torch.tensor(ids) if path.stem == "tensor" else ids, path)


FILES = ["ids.npy", "list.pt", "tensor.pt", "ids.json"]


@pytest.mark.parametrize("name", FILES)
def test_files_of_ids(tmp_path: Path, name: str) -> None:
    _write(tmp_path / name, [7, 2, 9])
    assert read_token_ids(tmp_path / name).tolist() == [7, 2, 9]
    assert read_token_ids(str(tmp_path / name), 10).tolist() == [7, 2, 9]
    with pytest.raises(ValueError, match=rf"{name}: expected ids in \[0, 9\), got 9 at position 2"):
        read_token_ids(tmp_path / name, 9)


@pytest.mark.parametrize("name", FILES)
def test_damaged_files_are_named_in_one_line(tmp_path: Path, name: str) -> None:
    """Every length and a few flipped bytes give ids or a one-line error, nothing else."""
    good, bad = tmp_path / name, tmp_path / f"bad{Path(name).suffix}"
    _write(good, list(range(5, 40)))
    data = good.read_bytes()
    damaged = [data[:end] for end in range(0, len(data), max(1, len(data) // 40))]
    damaged += [
        data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :]
        for at in range(0, len(data), max(1, len(data) // 40))
    ]
    refused = 0
    for contents in damaged:
        bad.write_bytes(contents)
        try:
            read_token_ids(bad)
        except ValueError as error:
            refused += 1
            assert str(error).startswith(f"{bad}: expected ")
            assert "\n" not in str(error)
    assert refused >= len(damaged) // 2


@settings(max_examples=200, deadline=None)
@given(contents=st.binary(max_size=200), suffix=st.sampled_from([".npy", ".pt", ".json"]))
def test_any_bytes_at_all(
    tmp_path_factory: pytest.TempPathFactory, contents: bytes, suffix: str
) -> None:
    path = tmp_path_factory.getbasetemp() / f"any{suffix}"
    path.write_bytes(contents)
    try:
        read_token_ids(path)
    except ValueError as error:
        assert str(error).startswith(f"{path}: expected ") and "\n" not in str(error)


def test_a_header_does_not_decide_what_is_allocated(tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", np.arange(8))
    data = (tmp_path / "ids.npy").read_bytes()
    huge = data.replace(b"'shape': (8,), }", b"'shape': (9000000000000,), }")
    (tmp_path / "ids.npy").write_bytes(huge[:10] + huge[10:].replace(b" " * 12, b"", 1))
    with pytest.raises(ValueError, match=r"ids.npy: expected an .npy .* got an unreadable file"):
        read_token_ids(tmp_path / "ids.npy")


@pytest.mark.parametrize(
    "name, contents, message",
    [
        ("a.npy", np.array([1.5]), r"integers in 1 dimension\(s\), got float64 \[1\]"),
        ("a.npy", np.array([[1]]), r"integers in 1 dimension\(s\), got int64 \[1, 1\]"),
        ("a.npy", np.array([None]), "unreadable file"),
        ("a.pt", {"ids": [1]}, "a tensor or a list of token ids, got dict"),
        ("a.pt", torch.tensor([1.5]), "integer ids, got float32"),
        ("a.pt", Path("x"), "unreadable file"),  # loading this object would run its code
        ("a.json", {"ids": [1]}, "a .json list of token ids, got dict"),
        ("a.json", [1.0], "integer ids, got float"),
        ("a.json", [True], "integer ids, got bool"),
        ("a.txt", [1], "an .npy, .pt or .json of token ids, got .txt suffix"),
    ],
)
def test_files_of_something_else(tmp_path: Path, name: str, contents: Any, message: str) -> None:
    path = tmp_path / name
    match path.suffix:
        case ".npy":
            np.save(path, contents)
        case ".pt":
            torch.save(contents, path)
        case _:
            path.write_text(json.dumps(contents))
    with pytest.raises(ValueError, match=f"{name}: expected .*{message}"):
        read_token_ids(path)


def test_no_file(tmp_path: Path) -> None:
    for suffix in (".npy", ".pt", ".json"):
        with pytest.raises(FileNotFoundError, match=f"none{suffix}"):
            read_token_ids(tmp_path / f"none{suffix}")
