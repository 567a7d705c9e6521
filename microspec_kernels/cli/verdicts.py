# SPDX-License-Identifier: Apache-2.0
"""Compare the dense and the sparse head by figures that benchmarks wrote."""

import re
from collections.abc import Iterable
from typing import NamedTuple

from .measured import Row

ALIKE = 0.4  # least share of common words in the names of two similar devices
COMMON_WORDS = {"r", "tm", "cpu", "processor", "family", "model", "threads"}
SITUATIONS = ("in situ", "cold")  # the one closest to an engine comes first


class Point(NamedTuple):
    """Median times in µs of both heads at one K (capacity) and M (num_tokens)."""

    capacity: int
    num_tokens: int
    sparse: float
    dense: float


def nearest(here: str, devices: Iterable[str]) -> str | None:
    """Return this device, or else the one whose name has the most words in common with its name.

    The result is None if no name has a share of at least ALIKE common words.
    """

    def words(name: str) -> set[str]:
        return set(re.findall(r"[a-z0-9]+", name.lower())) - COMMON_WORDS

    def alike(name: str) -> float:
        return len(words(name) & words(here)) / len(words(name) | words(here))

    near = [name for name in devices if alike(name) >= ALIKE]
    return max(sorted(near), key=lambda name: (name == here, alike(name)), default=None)


def with_both_heads(rows: list[Row]) -> set[str]:
    """Return the devices with figures of a sparse and a dense head at the same M."""
    of_device: dict[str, list[Row]] = {}
    for row in rows:
        of_device.setdefault(row["device"], []).append(row)
    return {device for device, those in of_device.items() if points(those)[1]}


def kind_of(arm: str) -> str | None:
    """Classify an arm as "sparse" or "dense"; None for quantised rows and for all other arms.

    Quantised rows have other figures, and the package does not offer the other arms.
    """
    if arm.startswith("sparse_head") and not re.search("fp8|int8", arm):
        return "sparse"
    return "dense" if arm.startswith("dense") else None


def points(rows: list[Row]) -> tuple[str, list[Point]]:
    """Return the situation of the figures, and the fastest time of each head in that situation."""
    rows = [row for row in rows if kind_of(row["arm"])]
    present = [row["situation"] for row in rows]
    situation = next((name for name in SITUATIONS if name in present), present[0])
    sparse: dict[tuple[int, int], float] = {}
    dense: dict[int, float] = {}  # by M: the dense head does not depend on K
    for row in rows:
        if row["situation"] != situation:
            continue
        took, m = float(row["p50_us"]), int(row["M"])
        if kind_of(row["arm"]) == "dense":
            dense[m] = min(took, dense.get(m, took))
        else:
            key = int(row["K"]), m
            sparse[key] = min(took, sparse.get(key, took))
    found = [Point(k, m, took, dense[m]) for (k, m), took in sorted(sparse.items()) if m in dense]
    return situation, found


def dense_from(found: list[Point]) -> dict[int, int | None]:
    """Find for each M the smallest measured K from which on the dense head is no slower.

    The value is None for an M at which the dense head is slower at the largest measured K.
    """
    result: dict[int, int | None] = {}
    for m in sorted({point.num_tokens for point in found}):
        result[m] = None
        for point in sorted((p for p in found if p.num_tokens == m), reverse=True):
            if point.sparse < point.dense:
                break
            result[m] = point.capacity
    return result


def verdicts(found: list[Point]) -> list[str]:
    """Write one sentence for each set of M that have the same answer."""
    sizes_of: dict[int | None, list[int]] = {}
    for m, capacity in dense_from(found).items():
        sizes_of.setdefault(capacity, []).append(m)
    sentences = []
    for capacity, ms in sizes_of.items():
        sizes = sorted({point.capacity for point in found if point.num_tokens in ms})
        smaller = [k for k in sizes if capacity is not None and k < capacity]
        if capacity is None:
            said = f"the sparse head, at every K measured ({_range(sizes)})"
        elif smaller:
            said = f"the dense head from K = {capacity} on; the sparse one up to {smaller[-1]}"
        else:
            said = f"the dense head, at every K measured ({_range(sizes)})"
        sentences.append(f"M = {', '.join(map(str, ms))}: {said}")
    return sentences


def _range(sizes: list[int]) -> str:
    return str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
