# SPDX-License-Identifier: Apache-2.0
"""``torch.ops.microspec.*`` over the CPU kernels for Arm, in a process under qemu.

CMake cross-compiles them with tests/arm/driver.cpp, which needs only the headers of torch. The
build stays in build/arm. The driver places its input directly before inaccessible pages.
"""

import functools
import importlib.util
import os
import re
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import torch
from build_with_cmake import ROOT, build_with_cmake
from emulated_ops import (
    SENTINEL,
    accept_results,
    check_head,
    check_sample,
    cut_results,
    grow_results,
)
from generators import row_indexed
from schemas import SCHEMAS
from torch import Tensor

from microspec_kernels import _checks, reference

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
HEAD, GATHER, VOCAB, COUNT, REFILL, SAMPLE, GROW, CUT, ACCEPT = range(9)
ENUM = re.search(r"enum class DType \{ (.*) \};", (ROOT / "csrc/common/dtype.h").read_text())
assert ENUM is not None
NUMBERS = {name: number for number, name in enumerate(ENUM[1].split(", "))}
TYPES = {
    torch.float32: NUMBERS["f32"],
    torch.float16: NUMBERS["f16"],
    torch.bfloat16: NUMBERS["bf16"],
    torch.int8: NUMBERS["i8"],
    torch.float8_e4m3fn: NUMBERS["f8e4m3"],
    torch.uint8: NUMBERS["i4"],
    torch.float4_e2m1fn_x2: NUMBERS["f4e2m1"],
}


def tools_are_missing() -> bool:
    return shutil.which(COMPILER) is None or shutil.which(EMULATOR) is None


@functools.cache
def build(target: str = "arm_driver") -> Path:
    spec = importlib.util.find_spec("torch")
    assert spec is not None and spec.origin is not None
    folder = build_with_cmake(
        ROOT,
        ROOT / "build" / "arm",
        "-DCMAKE_SYSTEM_NAME=Linux",
        "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
        f"-DCMAKE_CXX_COMPILER={COMPILER}",
        f"-DTORCH_DIR={Path(spec.origin).parent}",
        "-DMICROSPEC_CUDA=OFF",
        "-DMICROSPEC_MANYLINUX=ON",
        target=target,
    )
    return folder


def command(processor: str, *arguments: str) -> list[str]:
    return [EMULATOR, "-cpu", processor, str(build() / "arm_driver"), *arguments]


def environment(isa: str | None) -> dict[str, str]:
    others = {name: value for name, value in os.environ.items() if name != "MICROSPEC_ISA"}
    return others if isa is None else {**others, "MICROSPEC_ISA": isa}


class Driver:
    """The process under qemu.

    It starts with the first call, and again after a call that ended it.
    """

    def __init__(self, processor: str, isa: str) -> None:
        self._processor, self._isa = processor, isa
        self._process: subprocess.Popen[bytes] | None = None

    def call(
        self, op: int, integers: list[int], floats: list[float], written: list[Any], read: list[Any]
    ) -> None:
        """Run one op. ``written`` are contiguous tensors, or None, that receive its results."""
        message = struct.pack(f"<{1 + len(integers)}q{len(floats)}f", op, *integers, *floats)
        message += b"".join(map(as_message, (*written, *read)))
        process = self._running()
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(message)
            process.stdin.flush()
            results = [process.stdout.read(size_of(tensor)) for tensor in written]
        except BrokenPipeError:
            results = [b""]
        for tensor, result in zip(written, results, strict=False):
            if len(result) < size_of(tensor):
                self._process = None
                raise AssertionError(f"the driver ended, exit {process.wait()}: see its stderr")
            if result:
                flat = torch.frombuffer(bytearray(result), dtype=torch.uint8).view(tensor.dtype)
                row_indexed(tensor).copy_(row_indexed(flat.view(tensor.shape)))

    def _running(self) -> "subprocess.Popen[bytes]":
        if self._process is None:
            self._process = subprocess.Popen(
                command(self._processor),
                env=environment(self._isa),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
        return self._process


def size_of(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.numel() * tensor.element_size()


def as_message(tensor: Tensor | None) -> bytes:
    """Return the tensor's memory from first to last element, with the gaps between rows."""
    if tensor is None:
        return struct.pack("<q", -1)
    span = 0
    if tensor.numel():
        span = 1 + sum(
            (n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True)
        )
    memory = tensor.as_strided((span,), (1,)).view(torch.uint8).numpy().tobytes()
    return struct.pack("<q", len(memory)) + memory


def whole_rows(tensor: Tensor) -> Tensor:
    """View a matrix's memory from the first to the last element, with the gaps between rows."""
    rows, columns = tensor.shape
    span = (rows - 1) * tensor.stride(0) + columns if tensor.numel() else 0
    return tensor.as_strided((span,), (1,))


@functools.cache
def driver(processor: str, isa: str) -> Driver:
    return Driver(processor, isa)


class Ops:
    """The ops over one driver."""

    def __init__(self, processor: str, isa: str) -> None:
        self._driver = driver(processor, isa)

    def functions(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in SCHEMAS}

    def sparse_head(
        self, hidden: Tensor, weight: Tensor, active_ids: Tensor, k: int, **options: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        check_head("sparse_head", hidden, weight, active_ids, options, k)
        logits = torch.full((len(hidden), k), SENTINEL)
        token_ids = torch.full((len(hidden), k), -77)
        logsumexp = torch.full((len(hidden),), SENTINEL)
        results = (logits, token_ids, logsumexp)
        self._head(results, hidden, weight, active_ids, k, options)
        return results

    def sparse_logits(
        self, hidden: Tensor, weight: Tensor, active_ids: Tensor, **options: Any
    ) -> Tensor:
        check_head("sparse_logits", hidden, weight, active_ids, options, None)
        logits = torch.full((len(hidden), active_ids.size(-1)), SENTINEL)
        self._head((logits, None, None), hidden, weight, active_ids, 0, options)
        return logits

    def _head(
        self,
        results: tuple[Tensor | None, ...],
        hidden: Tensor,
        weight: Tensor,
        active_ids: Tensor,
        k: int,
        options: dict[str, Any],
    ) -> None:
        packed, group_ids = options.get("packed", False), options.get("group_ids")
        _checks.head_ids(
            "sparse_head", hidden, weight, active_ids, packed, group_ids, options.get("bias")
        )
        integers, floats, read = self._head_arguments(hidden, weight, active_ids, k, options)
        self._driver.call(HEAD, integers, floats, list(results), read)

    def _head_arguments(
        self, hidden: Tensor, weight: Tensor, active_ids: Tensor, k: int, options: dict[str, Any]
    ) -> tuple[list[int], list[float], list[Tensor | None]]:
        packed, group_ids = options.get("packed", False), options.get("group_ids")
        scale, bias = options.get("weight_scale"), options.get("bias")
        num_groups = active_ids.size(0) if active_ids.dim() == 2 else 1
        integers = [
            *(int(packed), int(group_ids is not None and group_ids.dtype == torch.int64)),
            int(group_ids is not None and len(group_ids) == 1),
            *(*hidden.shape, num_groups, active_ids.size(-1), hidden.stride(0)),
            *(weight.stride(-2), weight.stride(0) if weight.dim() == 3 else 0),
            *(TYPES[hidden.dtype], TYPES[weight.dtype]),
            *(TYPES[torch.float32 if bias is None else bias.dtype], k),
        ]
        floats = [options.get("logit_scale", 1.0), options.get("softcap", 0.0)]
        return integers, floats, [hidden, weight, active_ids, group_ids, scale, bias]

    def sparse_sample(
        self, hidden: Tensor, weight: Tensor, active_ids: Tensor, *by_row: Tensor, **options: Any
    ) -> tuple[Tensor, Tensor]:
        check, vocab_size = check_sample(hidden, weight, active_ids, *by_row, **options)
        check.ids(active_ids, "active_ids", vocab_size, "ids", "flat position")
        logits, rows = options.get("token_logits"), options.get("logit_rows")
        if rows is not None:
            check.ids(rows, "logit_rows", len(logits), "rows", "position")
        tokens, log_probs = torch.full((len(hidden),), -77), torch.full((len(hidden),), SENTINEL)
        integers, floats, read = self._head_arguments(hidden, weight, active_ids, 0, options)
        integers += [int(rows is not None and rows.dtype == torch.int64)]
        if logits is None:
            integers += [0] * 4
        else:
            integers += [*logits.shape, logits.stride(0), TYPES[logits.dtype]]
        read += [*by_row, options.get("row_tokens"), rows]
        memory = None if logits is None else whole_rows(logits)
        self._driver.call(SAMPLE, integers, floats, [tokens, log_probs, memory], read)
        return tokens, log_probs

    def gather_rows_(
        self,
        slab: Tensor,
        slab_ids: Tensor,
        weight: Tensor,
        active_ids: Tensor,
        *,
        slab_scale: Tensor | None = None,
        weight_scale: Tensor | None = None,
    ) -> None:
        check = _checks.gather(slab, slab_ids, weight, active_ids, slab_scale, weight_scale)
        check.ids(active_ids, "active_ids", weight.size(0), "ids", "flat position")
        types = (TYPES[slab.dtype], TYPES[weight.dtype])
        dim = weight.size(1) * (2 if weight.dtype in _checks.FOUR_BIT else 1)
        integers = [active_ids.numel(), dim, weight.stride(0), *types]
        written = [slab, slab_ids, slab_scale]
        self._driver.call(GATHER, integers, [], written, [weight, active_ids, weight_scale])

    def vocab_update_(
        self,
        active_ids: Tensor,
        slot_stamps: Tensor,
        token_slots: Tensor,
        clock: Tensor,
        tokens: Tensor,
        *,
        token_groups: Tensor | None = None,
    ) -> None:
        state = (active_ids, slot_stamps, token_slots, clock)
        check = _checks.vocab(*state, tokens, token_groups)
        check.ids(tokens, "tokens", token_slots.size(1), "ids", "flat position")
        num_groups, capacity = len(token_slots), active_ids.size(-1)
        if token_groups is None:
            stream = tokens.reshape(num_groups, tokens.size(-1)).long()
        else:
            check.ids(token_groups, "token_groups", num_groups, "groups", "position")
            group = torch.arange(num_groups)[:, None]
            stream = torch.where(token_groups == group, tokens, -1).long()
        ids = active_ids.view(num_groups, capacity)
        for g in range(num_groups):
            integers = [capacity, token_slots.size(1), stream.size(1)]
            written = [ids[g], slot_stamps[g], token_slots[g], clock[g : g + 1]]
            self._driver.call(VOCAB, integers, [], written, [stream[g]])

    def vocab_count_(
        self,
        text_counts: Tensor,
        seen: Tensor,
        tokens: Tensor,
        *,
        token_requests: Tensor | None = None,
        request_lists: Tensor | None = None,
        total_counts: Tensor | None = None,
    ) -> None:
        written = [text_counts, seen, total_counts]
        read = [tokens, token_requests, request_lists]
        _checks.vocab_count(text_counts, seen, *read, total_counts)
        integers = [int(t is not None and t.dtype == torch.int64) for t in read]
        integers += [len(seen), *text_counts.shape, tokens.size(-1)]
        self._driver.call(COUNT, integers, [], written, read)

    def vocab_observe_(
        self,
        active_ids: Tensor,
        slot_stamps: Tensor,
        token_slots: Tensor,
        clock: Tensor,
        tokens: Tensor,
        *,
        lengths: Tensor | None = None,
        candidates: Tensor | None = None,
        token_rows: Tensor | None = None,
        token_groups: Tensor | None = None,
        token_requests: Tensor | None = None,
        tally: Tensor | None = None,
        num_lists: int = 0,
    ) -> None:
        state = (active_ids, slot_stamps, token_slots, clock)
        options = {
            "lengths": lengths,
            "candidates": candidates,
            "token_rows": token_rows,
            "token_groups": token_groups,
            "token_requests": token_requests,
            "tally": tally,
            "num_lists": num_lists,
        }
        _checks.vocab_observe(*state, tokens, **options)
        observe = reference.observing(self.vocab_count_, self.vocab_update_)
        observe(*state, tokens, **options)

    def vocab_refill_(
        self,
        active_ids: Tensor,
        slot_stamps: Tensor,
        token_slots: Tensor,
        clock: Tensor,
        text_counts: Tensor,
        token_ranks: Tensor,
        group_lists: Tensor,
        *,
        total_counts: Tensor | None = None,
        pinned: int = 0,
        reset: bool = True,
    ) -> None:
        state = [active_ids, slot_stamps, token_slots, clock]
        read = [text_counts, token_ranks, group_lists]
        check = _checks.vocab_refill(*state, *read, total_counts, pinned)
        check.ids(group_lists, "group_lists", len(text_counts), "lists", "position")
        integers = [int(group_lists.dtype == torch.int64), int(reset), len(token_slots)]
        integers += [active_ids.size(-1), token_slots.size(1), len(text_counts), pinned]
        read = [text_counts, total_counts, token_ranks, group_lists]
        self._driver.call(REFILL, integers, [], state, read)

    def tree_grow_(
        self,
        pool_tokens: Tensor,
        pool_parents: Tensor,
        pool_costs: Tensor,
        logits: Tensor,
        token_ids: Tensor,
        logsumexp: Tensor,
        width: int,
        *,
        begin: int = 0,
        frontier: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        pool, level = [pool_tokens, pool_parents, pool_costs], [logits, token_ids, logsumexp]
        check = _checks.tree_grow(*pool, *level, width, begin, frontier)
        if frontier is not None:
            check.ids(frontier, "frontier", begin, "places", "flat position")
        results = grow_results(pool_costs, logits, width, frontier)
        frontier_width = 1 if frontier is None else frontier.size(1)
        integers = [*pool_costs.shape, frontier_width, logits.size(1), begin, results[0].size(1)]
        self._driver.call(GROW, integers, [], [*pool, *results], [*level, frontier])
        return results

    def tree_cut(
        self,
        roots: Tensor,
        pool_tokens: Tensor,
        pool_parents: Tensor,
        pool_costs: Tensor,
        size: int,
    ) -> tuple[Tensor, ...]:
        read = [roots, pool_tokens, pool_parents, pool_costs]
        check = _checks.tree_cut(*read, size)
        check.ids(pool_parents, "pool_parents", pool_parents.size(1), "places", "flat position")
        results = cut_results(pool_costs, size)
        integers = [*pool_costs.shape, results[0].size(1)]
        self._driver.call(CUT, integers, [], [*results], read)
        return results

    def tree_accept(
        self, tokens: Tensor, parents: Tensor, chosen: Tensor, depth: int
    ) -> tuple[Tensor, ...]:
        read = [tokens, parents, chosen]
        check = _checks.tree_accept(*read, depth)
        check.ids(parents, "parents", parents.size(1), "nodes", "flat position")
        results = accept_results(tokens, depth)
        integers = [*tokens.shape, depth, results[0].size(1)]
        self._driver.call(ACCEPT, integers, [], [*results], read)
        return results
