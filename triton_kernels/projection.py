# SPDX-License-Identifier: Apache-2.0
"""Active rows × hidden: the part of both head ops that reads the weight.

The bytes of the rows bound the product. So each active row is read once, and as many bytes are kept
in flight as the device needs. A program owns 64 slots of one group and one split of D. It streams
their rows through ``tl.dot`` against all of the group's rows of hidden. There are as many splits
as fill the device at once. Their fp32 sums go to a scratch tensor. ``finish`` adds them in order,
in the kernel that consumes them, without atomics, so the result has the same bits every time.
"""

import logging
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._checks import E2M1, E2M1_GROUP, INT4, INT4_GROUP
from .common import HIP, INTERPRETED, converts_float8, multiprocessors
from .rows import WIDEN, add_e2m1, add_int4, float_of_e4m3

logger = logging.getLogger(__name__)

# Slots a program. 64 is one warpgroup's wgmma on Hopper, with the rows as its first operand. So
# hidden is read once per 64 rows: at M <= 16 a quarter of the rows' bytes, and from L2.
BLOCK_SLOTS = 64
# D is cut at multiples of this number, which every BLOCK_D divides. So the cuts, and with them the
# result's last bits, do not depend on the configuration that tuning picks.
SPLIT_STEP = 128
# Two programs of four warps and up to 255 registers fit on a multiprocessor, each with up to 48 KB
# of rows in flight (3 stages of 64 x 128 x 2 bytes). On an H100 that is 12 MB in total, four times
# the 3 MB that 3 TB/s and 1 us of latency require.
PROGRAMS_PER_MULTIPROCESSOR = 2
# group_ids compared at once in the search for a group's rows of hidden.
BLOCK_SEARCH = 32
# Columns of e2m1 rows in a step: the even ones and the odd ones are a product each, of 16 columns,
# the fewest that tensor cores take.
E2M1_STEP = 32


def _config(block_d: int, stages: int, warps: int, registers: int | None) -> triton.Config:
    """Return a configuration of ``project_kernel``; registers=None lets the compiler choose."""
    return triton.Config(
        {"BLOCK_D": block_d}, num_stages=stages, num_warps=warps, maxnreg=registers
    )


def configs(fp32: bool, block_m: int, hip: bool = HIP) -> list[triton.Config]:
    """Return the configurations that tuning tries; all of them sum in the same order.

    With 64 rows of hidden, a stage of 128 would spill at four warps. HIP's stages stay within 64 KB
    of LDS. fp32 has no tensor cores, and a thread holds all of its BLOCK_D in registers: a fourth
    stage would spill on sm_80 when one id serves all rows. Without an
    explicit limit of 255 registers, ptxas stops at 168, to fit a third program, and spills.
    4-bit rows ignore BLOCK_D: a step is 32 columns, one group of int4 and two of e2m1.
    """
    if fp32:
        return [_config(32, 2 if hip else 3, 4, None)]
    if block_m == 16:
        shapes = [(128, 2, 4), (64, 2, 4)] if hip else [(128, 4, 4), (64, 6, 4)]
    else:
        shapes = [(64, 2, 4), (128, 2, 8)] if hip else [(64, 4, 4), (128, 3, 8)]
    return [_config(*shape, None if hip else 255) for shape in shapes]


def _usable(_: object, arguments: dict[str, Tensor], **constants: int) -> list[triton.Config]:
    """Return the configurations that fit the call: the rule for ``prune_configs_by``."""
    return configs(arguments["hidden"].dtype == torch.float32, constants["BLOCK_M"])


@triton.jit
def _members(group_ids, group, first, m_rows, BLOCK_M: tl.constexpr, BLOCK: tl.constexpr):
    """Return the positions of the group's rows numbered from first, and the group's row count."""
    wanted = first + tl.arange(0, BLOCK_M)
    rows = tl.zeros([BLOCK_M], tl.int32)
    count = 0
    for start in range(0, m_rows, BLOCK):
        at = start + tl.arange(0, BLOCK)
        member = tl.load(group_ids + at, mask=at < m_rows, other=-1) == group
        number = count + tl.cumsum(member.to(tl.int32), 0) - 1
        match = member[None, :] & (number[None, :] == wanted[:, None])
        rows += tl.sum(tl.where(match, at[None, :], 0), 1)
        count += tl.sum(member.to(tl.int32), 0)
    return rows, count


@triton.autotune(
    # The interpreter has only one configuration, and no clock to compare by.
    configs=[_config(64, 1, 4, None)] if INTERPRETED else configs(False, 16) + configs(False, 64),
    # Tune for dim and for the size class of M (BLOCK_M has two values); never for M, K or the
    # active tokens.
    key=["dim", "BLOCK_M"],
    prune_configs_by={"early_config_prune": _usable},
    cache_results=True,
)
@triton.jit(do_not_specialize=["m_rows", "capacity", "last_id", "splits", "steps"])
def project_kernel(
    hidden,  # [M, D]
    weight,  # [V, D]; PACKED: [G, K, D]; INT4, E2M1: two columns a byte
    group_scale,  # [V, ..]; PACKED: [G, K, ..]; INT4: bf16, D/32 a row; E2M1: e4m3's bytes, D/16
    active_ids,  # int32 [G, K]
    group_ids,  # [M], when GROUPED; [1], when ONE_GROUP
    partial,  # fp32 [splits, M, K]; written at valid slots only
    m_rows,
    capacity,
    dim,
    last_id,  # V - 1
    hidden_stride,
    weight_stride,
    weight_group_stride,
    splits,
    steps,  # in units of SPLIT_STEP elements, for each split
    PACKED: tl.constexpr,
    GROUPED: tl.constexpr,
    ONE_GROUP: tl.constexpr,
    INT4: tl.constexpr,
    INT4_GROUP: tl.constexpr,
    E2M1: tl.constexpr,  # the weight is passed as uint8
    E2M1_GROUP: tl.constexpr,
    E4M3: tl.constexpr,  # the weight is passed as uint8
    CONVERTS: tl.constexpr,  # the hardware converts e4m3
    STEP: tl.constexpr,
    E2M1_STEP: tl.constexpr,
    BLOCK_SLOTS: tl.constexpr,
    BLOCK_SEARCH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    program = tl.program_id(0)
    split = program % splits
    tiles = tl.cdiv(capacity, BLOCK_SLOTS)
    tile = program // splits % tiles
    group = program // splits // tiles

    slots = tile * BLOCK_SLOTS + tl.arange(0, BLOCK_SLOTS)
    ids = tl.load(active_ids + group.to(tl.int64) * capacity + slots, slots < capacity, -1)
    valid = (ids >= 0) & (ids <= last_id)
    count = m_rows
    if tl.max(valid.to(tl.int32), 0) == 0:
        count = 0  # nothing to read or write for empty slots
    elif ONE_GROUP:
        count = tl.where(tl.load(group_ids) == group, m_rows, 0)
    elif GROUPED:
        _, count = _members(group_ids, group, 0, m_rows, BLOCK_M, BLOCK_SEARCH)

    place = slots if PACKED else ids
    row_start = weight + group.to(tl.int64) * weight_group_stride
    row = tl.where(valid, place, 0).to(tl.int64)
    row_start += row[:, None] * weight_stride
    scale_row = group.to(tl.int64) * capacity + row if PACKED else row
    scale_start = group_scale + scale_row * (dim // (E2M1_GROUP if E2M1 else INT4_GROUP))
    offsets = tl.arange(0, BLOCK_D)
    begin = split * steps * STEP
    end = tl.minimum(begin + steps * STEP, dim)
    for first in range(0, count, BLOCK_M):
        rows = first + tl.arange(0, BLOCK_M)
        used = rows < count
        if GROUPED and not ONE_GROUP:
            rows, _ = _members(group_ids, group, first, m_rows, BLOCK_M, BLOCK_SEARCH)
        x_start = hidden + rows.to(tl.int64)[:, None] * hidden_stride
        total = tl.zeros([BLOCK_SLOTS, BLOCK_M], tl.float32)
        if INT4:
            for start in range(begin, end, INT4_GROUP):
                total = add_int4(
                    total, row_start, scale_start, x_start, start, valid, used, INT4_GROUP
                )
        elif E2M1:
            for start in range(begin, end, E2M1_STEP):
                total = add_e2m1(
                    total, row_start, scale_start, x_start, start, dim, valid, used,
                    E2M1_STEP, E2M1_GROUP,
                )  # fmt: skip
        else:
            for start in range(begin, end, BLOCK_D):
                d = start + offsets
                inside = d[None, :] < dim
                values = tl.load(row_start + d[None, :], mask=valid[:, None] & inside, other=0)
                x = tl.load(x_start + d[None, :], mask=used[:, None] & inside, other=0)
                if E4M3:
                    values = (
                        values.to(tl.float8e4nv, bitcast=True)
                        if CONVERTS
                        else float_of_e4m3(values)
                    )
                if WIDEN:
                    x = x.to(tl.float32)
                # int8 and e4m3 fit into hidden's dtype, whatever it is; "ieee" excludes TF32 for
                # fp32.
                total = tl.dot(values.to(x.dtype), tl.trans(x), total, input_precision="ieee")
        target = (split.to(tl.int64) * m_rows + rows)[None, :] * capacity + slots[:, None]
        tl.store(partial + target, total, mask=valid[:, None] & used[None, :])


# What has been tuned, by what Triton tunes for: dim, BLOCK_M and the tensors' dtypes.
_tuned: set[tuple[Any, ...]] = set()


@cache
def _say_untuned() -> None:
    logger.warning(
        "microspec_kernels: the first call of a kind is inside a graph's capture, where Triton "
        "cannot tune its kernel: the first configuration serves. Make one call before the capture."
    )


def _launch(
    grid: tuple[int, ...], tensors: tuple[Tensor, ...], *sizes: int, **constants: int
) -> None:
    """Launch ``project_kernel``, tuned unless this would tune it inside a graph's capture.

    Tuning synchronises the device, which ends a capture with an error.
    """
    dim = sizes[2]
    key = (dim, constants["BLOCK_M"], *(t.dtype for t in tensors))
    if INTERPRETED or key in _tuned or not torch.cuda.is_current_stream_capturing():
        project_kernel[grid](*tensors, *sizes, **constants)
        _tuned.add(key)
        return
    _say_untuned()
    first = configs(tensors[0].dtype == torch.float32, constants["BLOCK_M"])[0]
    project_kernel.fn[grid](*tensors, *sizes, **constants, **first.all_kwargs())


class Projection:
    """A launch of the projection, with the arguments of the kernels that finish it.

    Attributes:
        partial: fp32 [splits, M, K].
        group_ids: [M] or [1]. If there are none, any tensor, as for weight_scale and bias below:
            the kernels' constants say that they are not read.
        num_groups: G.
        last_id: the largest valid id.
        arguments: the arguments of ``finish``, from weight_scale on.
        constants: the constants of ``finish``, GROUPED and ONE_GROUP.
    """

    def __init__(
        self,
        hidden: Tensor,
        weight: Tensor,
        active_ids: Tensor,
        *,
        packed: bool = False,
        group_ids: Tensor | None = None,
        weight_scale: Tensor | None = None,
        bias: Tensor | None = None,
        logit_scale: float = 1.0,
        softcap: float = 0.0,
    ) -> None:
        m_rows, dim = hidden.shape
        capacity = active_ids.size(-1)
        num_groups = active_ids.size(0) if active_ids.dim() == 2 else 1
        if packed:
            last_id = 2**31 - 1 if bias is None else bias.size(0) - 1
        else:
            last_id = weight.size(0) - 1
        tiles = num_groups * triton.cdiv(capacity, BLOCK_SLOTS)
        steps, splits = self._cut(dim, tiles, hidden.device)
        self.partial = hidden.new_empty((splits, m_rows, capacity), dtype=torch.float32)
        self.group_ids = active_ids if group_ids is None else group_ids
        self.num_groups, self.last_id = num_groups, last_id
        int4, e2m1 = weight.dtype == INT4, weight.dtype == E2M1
        # An absent tensor is replaced by one that the kernels do not read.
        scale = hidden if weight_scale is None else weight_scale
        scale = scale.view(torch.uint8) if e2m1 else scale
        self.arguments = (
            scale,
            hidden if bias is None else bias,
            m_rows,
            capacity,
            splits,
            logit_scale,
            softcap,
        )
        one_group = group_ids is not None and len(group_ids) == 1
        self.constants = {
            "PACKED": packed,
            "SCALED": weight_scale is not None
            and not (int4 or e2m1),  # the projection applies theirs
            "BIASED": bias is not None,
            "CAPPED": softcap > 0,
            "GROUPED": group_ids is not None,
            "ONE_GROUP": one_group,
        }
        if not m_rows or not tiles:
            return
        e4m3 = weight.dtype == torch.float8_e4m3fn
        # Two sizes: one for a tree's node or level, one for a whole tree or batch. fp32 has no
        # tensor cores, so more rows would only cost more registers.
        small = m_rows <= 16 or hidden.dtype == torch.float32
        tensors = (
            hidden,
            weight.view(torch.uint8) if e4m3 or e2m1 else weight,
            scale,
            active_ids,
            self.group_ids,
            self.partial,
        )
        _launch(
            (tiles * splits,),
            tensors,
            m_rows,
            capacity,
            dim,
            last_id,
            hidden.stride(0),
            weight.stride(-2),
            weight.stride(0) if weight.dim() == 3 else 0,
            splits,
            steps,
            PACKED=packed,
            GROUPED=group_ids is not None,
            ONE_GROUP=one_group,
            INT4=int4,
            INT4_GROUP=INT4_GROUP,
            E2M1=e2m1,
            E2M1_GROUP=E2M1_GROUP,
            E4M3=e4m3,
            CONVERTS=e4m3 and converts_float8(hidden.device),
            STEP=SPLIT_STEP,
            E2M1_STEP=E2M1_STEP,
            BLOCK_SLOTS=BLOCK_SLOTS,
            BLOCK_SEARCH=BLOCK_SEARCH,
            BLOCK_M=16 if small else 64,
        )

    @staticmethod
    def _cut(dim: int, tiles: int, device: torch.device) -> tuple[int, int]:
        """Return the steps in a split and the splits of D, so that all programs can run at once.

        Neither depends on M: a row's logits have the same bits alone or in a batch.
        """
        steps = max(1, triton.cdiv(dim, SPLIT_STEP))
        room = PROGRAMS_PER_MULTIPROCESSOR * multiprocessors(device)
        each = triton.cdiv(steps, max(1, min(steps, room // max(1, tiles))))
        return each, triton.cdiv(steps, each)
