# SPDX-License-Identifier: Apache-2.0
"""Malformed files by name, and the valid files that they are made from."""

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

VOCAB = 50


class Planted:
    """A value in a foreign pickle: reading it calls a function."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return print, ("the pickle was run",)


def trace(**change: object) -> bytes:
    """Return an .npz of four tokens in two sequences; `change` replaces arrays, None drops them."""
    arrays: dict[str, object] = {
        "tokens": np.array([1, 2, 3, 49]),
        "generated": np.array([0, 1, 1, 1], dtype=np.uint8),
        "offsets": np.array([0, 2, 4]),
    }
    arrays |= change
    file = io.BytesIO()
    np.savez_compressed(file, **{n: a for n, a in arrays.items() if a is not None})
    return file.getvalue()


def npy(array: object) -> bytes:
    file = io.BytesIO()
    np.save(file, np.asarray(array), allow_pickle=True)
    return file.getvalue()


def pt(value: object) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def damaged(content: bytes) -> bytes:
    """Replace bytes in the middle; the length stays the same."""
    middle = len(content) // 2
    return content[: middle - 30] + bytes(60) + content[middle + 30 :]


def longer_than_its_file() -> bytes:
    """Return an .npz whose `tokens` claim 10^13 entries."""
    header = io.BytesIO()
    description = {"descr": "<i8", "fortran_order": False, "shape": (10**13,)}
    np.lib.format.write_array_header_1_0(header, description)
    file = io.BytesIO(trace(tokens=None))
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("tokens.npy", header.getvalue())
    return file.getvalue()


def tokenizer() -> bytes:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {word: number for number, word in enumerate(["[UNK]", *"abcdefgh"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer.to_str().encode()


def surrogate() -> bytes:
    return b'{"prompt": "a", "response": "\\ud800"}\n'


TRACES = {
    "sound.npz": trace(),
    "empty.npz": b"",
    "text.npz": b"a b c\n",
    "truncated.npz": trace()[:200],
    "damaged.npz": damaged(trace(tokens=np.arange(4) * 7919)),
    "array.npz": npy([1, 2, 3]),
    "pickle.npz": pickle.dumps(Planted()),
    "no-offsets.npz": trace(offsets=None),
    "objects.npz": trace(tokens=np.array([1, 2, 3, Planted()], dtype=object)),
    "floats.npz": trace(tokens=np.array([1.5, 2.0, 3.0, 4.0])),
    "texts.npz": trace(tokens=np.array(["a", "b", "c", "d"])),
    "bools.npz": trace(tokens=np.array([True, False, True, True])),
    "square.npz": trace(tokens=np.ones((4, 2), dtype=np.int64)),
    "scalar.npz": trace(tokens=np.array(3)),
    "backwards.npz": trace(offsets=np.array([0, 3, 2, 4])),
    "offset-floats.npz": trace(offsets=np.array([0.0, 2.0, 4.0])),
    "no-offset.npz": trace(offsets=np.empty(0, dtype=np.int64)),
    "offsets-end.npz": trace(offsets=np.array([0, 9])),
    "offsets-square.npz": trace(offsets=np.array([[0, 4]])),
    "offsets-wrap.npz": trace(offsets=np.array([0, 3, 2, 4], dtype=np.uint64)),
    "negative.npz": trace(tokens=np.array([1, -2, 3, 4])),
    "huge.npz": trace(tokens=np.array([1, 2, 2**40, 4])),
    "large.npz": trace(tokens=np.array([1, 2, 2**31 - 2, 4])),
    "uint64.npz": trace(tokens=np.array([1, 2, 2**63 + 1, 4], dtype=np.uint64)),
    "flags-nan.npz": trace(generated=np.array([0, np.nan, 1, 1])),
    "flags-many.npz": trace(generated=np.array([0, 1, 2, 1])),
    "flags-short.npz": trace(generated=np.array([0, 1])),
    "no-tokens.npz": trace(
        tokens=np.empty(0, np.int64), generated=np.empty(0, np.int64), offsets=np.zeros(1, int)
    ),
    "given-only.npz": trace(generated=np.zeros(4, dtype=np.uint8)),
    "claims.npz": longer_than_its_file(),
}
LISTS = {
    "sound.npy": npy([3, 1, 40]),
    "empty.npy": b"",
    "truncated.npy": npy(np.arange(1000))[:300],
    "text.npy": b"1\n2\n3\n",
    "objects.npy": npy(np.array([1, Planted()], dtype=object)),
    "floats.npy": npy([1.5, 2.0]),
    "square.npy": npy([[1, 2], [3, 4]]),
    "negative.npy": npy([1, -5]),
    "twice.npy": npy([1, 2, 1]),
    "huge.npy": npy([7, 2**32 + 5]),
    "large.npy": npy([7, 2**31 - 2]),
    "beyond.npy": npy([7, VOCAB]),
    "none.npy": npy(np.empty(0, dtype=np.int64)),
    "archive.npy": trace(),
    "sound.pt": pt([3, 1, 40]),
    "empty.pt": b"",
    "truncated.pt": pt(torch.arange(1000))[:900],
    "text.pt": b"1 2 3",
    "pickle.pt": pickle.dumps(Planted()),
    "object.pt": pt({"ids": [1]}),
    "floats.pt": pt(torch.tensor([1.0, 2.0])),
    "text.json": b"1, 2",
    "object.json": b"{}",
    "bytes.json": b"\xff\xfe[1]",
    "rank.txt": b"1\n2\n",
}
TEXTS = {
    "sound.txt": b"a b c d e f g h",
    "latin.txt": b"caf\xe9 a b",
    "empty.txt": b"",
    "binary.txt": bytes(range(256)),
    "sound.jsonl": b'{"prompt": "a b", "response": "c d"}\n',
    "empty.jsonl": b"\n",
    "list.jsonl": b'["a", "b"]\n',
    "cut.jsonl": b'{"prompt": "a", "respo',
    "latin.jsonl": b'{"prompt": "caf\xe9", "response": "b"}\n',
    "number.jsonl": b'{"prompt": ' + b"9" * 5000 + b', "response": "b"}\n',
    "deep.jsonl": b"[" * 100_000,
    "surrogate.jsonl": surrogate(),
}
TOKENIZERS = {
    "tokenizer.json": tokenizer(),
    "cut-tokenizer.json": tokenizer()[:150],
    "empty-tokenizer.json": b"",
    "list-tokenizer.json": b"[]",
    "latin-tokenizer.json": b"\xff\xfe{}",
    "config-tokenizer.json": json.dumps({"model_type": "llama"}).encode(),
}


def write_all(folder: Path) -> Path:
    for files in (TRACES, LISTS, TEXTS, TOKENIZERS):
        for name, content in files.items():
            (folder / name).write_bytes(content)
    (folder / "folder").mkdir()
    return folder
