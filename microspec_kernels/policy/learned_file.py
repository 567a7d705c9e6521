# SPDX-License-Identifier: Apache-2.0
"""Keep learned lists in a file from one start to the next."""

import hashlib
import logging
import os
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._files import first_line, reading
from .._optional import require
from .learned_lists import LearnedLists
from .prior import tokens_of

INTERVAL = 600.0
"""Seconds between two saves. A crash loses at most the texts of so long a time."""

logger = logging.getLogger(__name__)


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Return a hash of a tokenizer's tokens and ids.

    Args:
        tokenizer: see :func:`~.prior_of_tokenizer`, which raises the same error.
    """
    tokens, _ = tokens_of(tokenizer)
    return hashlib.sha256(repr(tokens).encode("utf-8", "surrogatepass")).hexdigest()


class LearnedFile:
    """A file of learned lists: read at the start, written at an interval and at exit.

    It holds counts of tokens and nothing else. Every write makes a new file beside the old one and
    then renames it, so a reader finds the old state or the new one, and never a part.

    Args:
        lists: the lists that the file keeps. If the file exists, they continue from it.
        path: the file, for example "learned.safetensors". Its folder must exist.
        tokenizer: :func:`tokenizer_fingerprint` of the model's tokenizer; "" if there is none.
        interval: least number of seconds between two writes of :meth:`poll`.
        writes: whether :meth:`poll` and the exit write. Pass False in all but one of the processes
            that begin with the same file.

    Raises:
        OSError: the folder does not exist, or the file is not readable.
        ValueError: the file is not one of learned lists, or its vocabulary size, number of lists
            or tokenizer differ.
        ImportError: safetensors is missing.
    """

    def __init__(
        self,
        lists: LearnedLists,
        path: str | Path,
        *,
        tokenizer: str = "",
        interval: float = INTERVAL,
        writes: bool = True,
    ) -> None:
        self.lists, self.path, self.interval, self.writes = lists, Path(path), interval, writes
        self._metadata = {
            "format": "microspec learned lists 1",
            "vocab_size": str(lists.vocab_size),
            "num_lists": str(lists.num_lists),
            "tokenizer": tokenizer,
        }
        require("safetensors", "speculative")
        if not self.path.parent.is_dir():
            raise FileNotFoundError(f"{self.path}: expected a folder {self.path.parent}, got none")
        if self.path.exists():
            self._load()
        self._written = time.monotonic()
        self._writer: threading.Thread | None = None
        if writes:
            # At exit, or when this object is collected. A fork's child does not own the file.
            self._at_exit = weakref.finalize(
                self, _save_in, os.getpid(), lists, self.path, self._metadata
            )

    def poll(self) -> None:
        """Begin a write in the background if the interval has passed. The call does not wait.

        Call it at request boundaries, on the stream that updates the lists. It logs a write that
        failed. Do not call it during graph capture.
        """
        busy = self._writer is not None and self._writer.is_alive()
        if not self.writes or busy or time.monotonic() - self._written < self.interval:
            return
        self._written = time.monotonic()
        state, ready = self.lists.state_dict(), None
        if self.lists.text_counts.is_cuda:
            ready = torch.cuda.Event()
            ready.record()
        self._writer = threading.Thread(
            target=_write_after, args=(ready, state, self.path, self._metadata), daemon=True
        )
        self._writer.start()

    def save(self) -> None:
        """Write the lists now.

        Raises:
            OSError: the file cannot be written.
        """
        if self._writer is not None:
            self._writer.join()
        _write(self.lists.state_dict(), self.path, self._metadata)
        self._written = time.monotonic()

    def _load(self) -> None:
        safetensors = require("safetensors", "speculative")
        with (
            reading(self.path, "a file of learned lists"),
            safetensors.safe_open(self.path, framework="pt") as file,
        ):
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        for name, want in self._metadata.items():
            if (got := metadata.get(name)) != want:
                what = f"{name} {want or 'none'}"
                raise ValueError(f"{self.path}: expected {what}, got {got or 'none'}")
        try:
            self.lists.load_state_dict(state)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{self.path}: {error}") from error


def _write(state: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    save = require("safetensors.torch", "speculative").save
    data = save({name: tensor.cpu() for name, tensor in state.items()}, metadata=metadata)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with unfinished.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # otherwise a power failure could leave the new name empty
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _write_after(
    ready: torch.cuda.Event | None, state: dict[str, Tensor], path: Path, metadata: dict[str, str]
) -> None:
    """Write when the device has made the copies; a failure must not end the server."""
    try:
        if ready is not None:
            ready.synchronize()
        _write(state, path, metadata)
    except Exception as error:
        logger.warning("%s: the learned lists were not written: %s", path, first_line(error))


def _save_in(process: int, lists: LearnedLists, path: Path, metadata: dict[str, str]) -> None:
    if os.getpid() == process:
        _write_after(None, lists.state_dict(), path, metadata)
