# SPDX-License-Identifier: Apache-2.0
"""List what a wheel contains, in CycloneDX: its own files and what the compiled library took in."""

import hashlib
import json
import uuid
from pathlib import Path
from typing import Any

# The oldest driver that a toolkit's programs run with, by its major version (docs/release.md).
OLDEST_DRIVER = {"12": "525", "13": "580"}
# It lets products carry libcudart_static.
CUDA_LICENCE = {"license": {"name": "NVIDIA Software License Agreement and CUDA Supplement"}}


def spdx(expression: str) -> list[dict[str, Any]]:
    return [{"expression": expression}]


def oldest_driver(built_with: dict[str, str]) -> str | None:
    """The oldest driver of a build's toolkit; None without CUDA kernels."""
    version = built_with.get("cuda")
    return None if version is None else OLDEST_DRIVER[version.partition(".")[0]]


def library(built_with: dict[str, str], torch: str) -> list[dict[str, Any]]:
    """Code of others in libmicrospec.so, each by its version at the build."""
    compiler, version = built_with["compiler"].split()
    parts: list[dict[str, Any]] = [
        {
            "type": "library",
            "bom-ref": "torch-headers",
            "name": "torch",
            "version": torch,
            "description": "inline functions of its headers; its libraries are not inside",
            "purl": f"pkg:pypi/torch@{torch.partition('+')[0]}",
            "licenses": spdx("BSD-3-Clause"),
        },
        {
            "type": "library",
            "bom-ref": "libstdc++",
            "name": "libstdc++",
            "version": version,
            "description": f"templates of {compiler}'s headers; its library is not inside",
            "licenses": spdx("GPL-3.0-or-later WITH GCC-exception-3.1"),
        },
    ]
    if "cuda" in built_with:
        parts.append(
            {
                "type": "library",
                "bom-ref": "cudart",
                "name": "cudart_static",
                "version": built_with["cuda"],
                "description": "NVIDIA's CUDA runtime, linked statically; "
                f"needs driver {oldest_driver(built_with)} or later; "
                f"kernels for {built_with['architectures']}",
                "licenses": [CUDA_LICENCE],
            }
        )
    return parts


def contents(
    folder: Path, name: str, version: str, built_with: dict[str, str], torch: str
) -> dict[str, Any]:
    """Describe an unpacked wheel. The same files give the same list, serial number included."""
    files = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and ".dist-info" not in str(path.relative_to(folder)):
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            files.append(
                {
                    "type": "file",
                    "bom-ref": str(path.relative_to(folder)),
                    "name": str(path.relative_to(folder)),
                    "hashes": [{"alg": "SHA-256", "content": digest}],
                    "licenses": spdx("Apache-2.0"),
                }
            )
    parts = library(built_with, torch)
    for file in files:
        if file["name"].endswith(".so"):
            file["components"] = parts
    serial = uuid.uuid5(uuid.NAMESPACE_OID, json.dumps(files, sort_keys=True))
    wheel = f"pkg:pypi/{name}@{version}"
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{serial}",
        "version": 1,
        "metadata": {
            "component": {
                "type": "library",
                "bom-ref": wheel,
                "name": name,
                "version": version,
                "purl": wheel,
                "licenses": spdx("Apache-2.0"),
            }
        },
        "components": files,
        "dependencies": [
            {"ref": wheel, "dependsOn": [file["bom-ref"] for file in files]},
        ],
    }
