# SPDX-License-Identifier: Apache-2.0
"""Check a checkpoint's folder before loading: its JSON files and the headers of its tensors."""

from pathlib import Path

from microspec_kernels._files import read_json, reading
from microspec_kernels._optional import require

JSON = ("config.json", "generation_config.json", "*.index.json")
WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")


def check_folder(option: str, name: str, *, weights: bool = True) -> None:
    """Check a folder; do nothing for a name on the hub, which cannot be checked before download.

    Args:
        option: the option that errors name.
        name: a folder, or the name of a repository on the hub.
        weights: whether the folder must hold a model, rather than only a tokenizer.

    Raises:
        OSError: `name` is neither a folder nor the name of a repository, or a file is missing or
            cannot be read.
        ValueError: a damaged file. The message names it.
    """
    folder = Path(name)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(
            f"{option}: expected a folder or a hub's name, got the file {name}"
        )
    if not folder.is_dir():
        if name.count("/") != 1 or not all(name.split("/")) or name[0] in "./~":
            raise FileNotFoundError(f"{option}: no folder {name}")
        return
    for path in (path for pattern in JSON for path in sorted(folder.glob(pattern))):
        _check_names(path, read_json(path))
    if not weights:
        return
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{option}: no config.json in {folder}")
    if not any(path for pattern in WEIGHTS for path in folder.glob(pattern)):
        raise FileNotFoundError(f"{option}: no {' and no '.join(WEIGHTS)} in {folder}")
    for path in sorted(folder.glob(WEIGHTS[0])):
        if not path.is_file():
            raise IsADirectoryError(f"{path}: expected a safetensors file, got a folder")
        with reading(path, "a safetensors file"):
            require("safetensors", "speculative").safe_open(path, framework="pt").keys()


def _check_names(path: Path, config: dict[str, object]) -> None:
    """Check that `model_type` and `architectures`, which identify a checkpoint, are texts."""
    kind, classes = config.get("model_type"), config.get("architectures") or []
    if not isinstance(kind, str | None):
        raise ValueError(f"{path}: model_type: expected a text, got {type(kind).__name__}")
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise ValueError(f"{path}: architectures: expected a list of texts, got another value")
