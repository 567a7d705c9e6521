# SPDX-License-Identifier: Apache-2.0
"""The slab: a packed copy of the active rows of the LM head."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ._checks import FOUR_BIT, INT4, QUANTISED
from ._linear import plain
from .ops import gather_rows_
from .vocab import ActiveVocab


class SlabView(NamedTuple):
    """Operands for ``sparse_head(packed=True)``. B is the number of buffers.

    Attributes:
        rows: [B·G, K, D], the slab; uint8 or float4_e2m1fn_x2 [B·G, K, D/2] with 4 bits a column.
        ids: int32 [B·G, K], the token that each row holds; -1 where empty.
        scale: fp32 [B·G, K], the scale of each row of a quantised slab; with 4 bits a column bf16
            [B·G, K, D/32] or float8_e4m3fn [B·G, K, D/16]; else None.
        group_ids: int32 or int64, the buffer and group for each row of hidden, in the shape of the
            row_groups given to :meth:`WeightSlab.front`. Without row_groups int64 [1], one for all
            rows; or None, if the slab has one buffer and one group.
    """

    rows: Tensor
    ids: Tensor
    scale: Tensor | None
    group_ids: Tensor | None


def _external_event() -> torch.cuda.Event | None:
    """Return an event that a captured graph can wait for at each replay; None with ROCm before 7.

    A replay waits for what was recorded last when the graph is launched.
    """
    try:
        return torch.cuda.Event(external=True)
    except RuntimeError:
        return None


class _SideStream:
    """A second stream for work beside the current stream. On a CPU, the work runs at once."""

    def __init__(self, device: torch.device, stream: torch.cuda.Stream | None) -> None:
        self._device = device
        # PyTorch's streams are non-blocking: the legacy stream does not wait for them.
        if stream is None and device.type == "cuda":
            stream = torch.cuda.Stream(device)
        self.stream = stream
        self.outside = None if stream is None else _external_event()
        self._done: torch.cuda.Event | None = None
        self._captured = False

    @contextmanager
    def run(self, *tensors: Tensor) -> Iterator[None]:
        """Run the body on the side stream, after the work already queued on the current stream.

        ``tensors``, which the current stream allocated, are kept alive until the body finishes.
        """
        if self.stream is None:
            yield
            return
        self._captured = torch.cuda.is_current_stream_capturing()
        self.stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self.stream):
            yield
            self._done = self.stream.record_event(None if self._captured else self.outside)
        for tensor in tensors:
            tensor.record_stream(self.stream)

    def wait(self) -> None:
        """Let the current stream wait for the last run.

        In a capture, a run outside of it becomes a node that waits, at each replay, for the newest
        run. Skip the wait for a captured run outside its capture: an event recorded during capture
        does not order what follows a replay.
        """
        if self._done is None:
            return
        capturing = torch.cuda.is_current_stream_capturing()
        if self._captured == capturing or self._done is self.outside:
            torch.cuda.current_stream(self._device).wait_event(self._done)


class WeightSlab:
    """A packed copy of the active rows that copies only the rows that changed.

    The buffers are groups of one slab. The number of the front buffer lies on the device, so one
    captured graph serves every step. A slab has its own ids, which a head reads with the rows. The
    ids therefore always match the rows, even if the vocabulary has changed since.

    On a GPU, :meth:`refresh` only enqueues the copies on a side stream, and :meth:`front` lets the
    current stream wait for them. On a CPU, :meth:`refresh` copies at once, so one buffer is enough.

    With a CUDA graph, capture both methods in one graph. Or refresh outside the graph that contains
    :meth:`front`: each replay waits for the last refresh. (With ROCm before 7, call :meth:`wait`
    before each replay instead.)

    Args:
        weight: the LM head [V, D], bf16, fp16 or fp32; int8, float8_e4m3fn or 4-bit rows (uint8 or
            float4_e2m1fn_x2 [V, D/2]) with ``weight_scale``. If the vocabulary is on a GPU, the
            weight may also lie in pinned host memory: only rows that change cross the bus.
        vocab: the active vocabulary.
        dtype: dtype of the slab: weight's (default), or int8 or float8_e4m3fn, quantised by row, or
            "int4", quantised by groups of 32 columns. D is then a multiple of 32. Quantised rows
            are only copied.
        buffers: 1 or 2. With 2, a refresh can overlap with a draft that reads the other buffer.
            1 is enough if they never overlap.
        weight_scale: fp32 [V] of a quantised weight; bf16 [V, D/32] or float8_e4m3fn [V, D/16] of
            4-bit rows; on vocab's device.
        stream: the stream on which :meth:`refresh` copies, on a GPU. The default is one of the 32
            streams that PyTorch hands out in turn. If that is also the caller's stream, nothing
            overlaps.

    Attributes:
        rows, ids, scale: the tensors of :class:`SlabView`.

    Raises:
        ValueError: weight does not have vocab's V rows; weight lies on another device; buffers is
            neither 1 nor 2.
        TypeError: weight is not a plain tensor (for example a DTensor or a torchao tensor).
    """

    # Inference tensors could not be refreshed in place outside inference mode.
    @torch.inference_mode(False)
    def __init__(
        self,
        weight: Tensor,
        vocab: ActiveVocab,
        *,
        dtype: torch.dtype | Literal["int4"] | None = None,
        buffers: int = 2,
        weight_scale: Tensor | None = None,
        stream: torch.cuda.Stream | None = None,
    ) -> None:
        plain(weight, "WeightSlab: weight")
        if weight.dim() != 2 or weight.size(0) != vocab.vocab_size:
            expected = f"shape [{vocab.vocab_size}, D]"
            raise ValueError(f"WeightSlab: weight: expected {expected}, got {list(weight.shape)}")
        if buffers not in (1, 2):
            raise ValueError(f"WeightSlab: buffers: expected 1 or 2, got {buffers}")
        if weight.device != vocab.device and not weight.is_pinned():
            expected = f"a tensor on {vocab.device} or in pinned host memory"
            raise ValueError(f"WeightSlab: weight: expected {expected}, got one on {weight.device}")
        self.weight, self.vocab, self.weight_scale = weight.detach(), vocab, weight_scale
        self.buffers = buffers
        dtype = INT4 if dtype == "int4" else dtype or weight.dtype
        slots, device = (buffers * vocab.num_groups, vocab.capacity), vocab.device
        dim = weight.size(1) * (2 if weight.dtype in FOUR_BIT else 1)
        columns = dim // 2 if dtype in FOUR_BIT else dim
        size = torch.empty(0, dtype=dtype).element_size()
        rows = torch.zeros(*slots, columns * size, dtype=torch.uint8, device=device)
        self.rows = rows.view(dtype)  # of bytes, as PyTorch cannot fill every dtype
        self.ids = torch.full(slots, -1, dtype=torch.int32, device=device)
        self.scale: Tensor | None = None
        if dtype in QUANTISED:
            self.scale = torch.ones(slots, dtype=torch.float32, device=device)
        elif dtype in FOUR_BIT:
            group, kind = FOUR_BIT[dtype]
            self.scale = torch.ones(*slots, dim // group, dtype=kind, device=device)
        # The front buffer's first group, and the first group of each buffer.
        self._front = torch.zeros(1, dtype=torch.int64, device=device)
        self._first = vocab.num_groups * torch.arange(buffers, device=device)[:, None, None]
        self._side_stream = _SideStream(device, stream)

    @property
    def stream(self) -> torch.cuda.Stream | None:
        """The stream of :meth:`refresh`; None on a CPU."""
        return self._side_stream.stream

    def refresh(self) -> None:
        """Copy the vocabulary's changed rows into the back buffer, and make it the front."""
        # Clone now: the vocabulary may change before the side stream has copied the rows.
        ids = self.vocab.ids.clone()
        with self._side_stream.run(ids):
            if self.buffers == 1:
                self._gather(ids)
                return
            back = self.vocab.num_groups - self._front
            held = self.ids.view(self.buffers, self.vocab.num_groups, -1)
            self._gather(torch.where(self._first == back, ids, held).view_as(self.ids))
            self._front.copy_(back)

    def refresh_beside_graphs(self) -> None:
        """Copy the changed rows with one kernel, beside the current stream. Needs one buffer.

        Call it outside capture: graphs that contain :meth:`front` wait for the copies. (In a
        capture, the copies become part of the graph.) The vocabulary's ids are read in
        place, so call :meth:`wait` before the vocabulary changes again. With ROCm before 7 the
        copies run on the current stream.

        One buffer is enough, because an engine drafts, verifies and refreshes in turn: when the
        copies begin, after all work queued on the current stream, the previous draft has read the
        slab. A second buffer would double the slab and the rows to copy, as each buffer needs
        them, and nothing could begin earlier.

        Raises:
            ValueError: the slab has two buffers.
        """
        if self.buffers != 1:
            expected = "buffers: expected 1"
            raise ValueError(f"WeightSlab: refresh_beside_graphs: {expected}, got {self.buffers}")
        if self.stream is not None and self._side_stream.outside is None:
            self.wait()
            self._gather(self.vocab.ids)
            return
        with self._side_stream.run():
            self._gather(self.vocab.ids)

    def _gather(self, wanted: Tensor) -> None:
        gather_rows_(
            self.rows,
            self.ids,
            self.weight,
            wanted,
            slab_scale=self.scale,
            weight_scale=self.weight_scale,
        )

    def wait(self) -> None:
        """Let the current stream wait for the last refresh. :meth:`front` calls this itself."""
        self._side_stream.wait()

    def front(self, row_groups: Tensor | None = None, *, keep: bool = True) -> SlabView:
        """Return the newest buffer, and let the current stream wait for it.

        Args:
            row_groups: int32 or int64 of any shape, the vocabulary's group for each row; -1 is
                padding. Default: group 0 for all rows.
            keep: whether the view stays on this buffer when the next refresh makes the other one
                the front. Pass False if every op that reads the view is enqueued before that
                refresh: this saves a kernel.
        """
        self.wait()
        group_ids = row_groups
        if row_groups is None and len(self.rows) > 1:
            group_ids = self._front.clone() if keep and self.buffers > 1 else self._front
        elif row_groups is not None and self.buffers > 1:
            front = self._front[0]
            if self.vocab.num_groups & (self.vocab.num_groups - 1) == 0:
                # One kernel: front is 0 or G, a bit that no group below G has and that -1 has.
                group_ids = row_groups | front
            else:
                group_ids = torch.where(row_groups >= 0, front + row_groups, -1)
        return SlabView(self.rows, self.ids, self.scale, group_ids)

    def invalidate(self) -> None:
        """Mark every row as empty, for example after a change of the weight.

        Call :meth:`refresh` before the next use.
        """
        self.wait()
        self.ids.fill_(-1)
