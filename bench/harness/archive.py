# SPDX-License-Identifier: Apache-2.0
"""Pack results into one file."""

import tarfile
from pathlib import Path


def pack(folder: Path, archive: Path) -> None:
    """Write a folder's files as a .tar.gz, in place of an earlier one that is whole until then."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    fresh = archive.with_name(f".{archive.name}")
    with tarfile.open(fresh, "w:gz") as file:
        file.add(folder, arcname=folder.name)
    fresh.replace(archive)
