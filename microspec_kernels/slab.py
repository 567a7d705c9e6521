"""The slab: a packed copy of the active rows of the LM head."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from ._checks import QUANTISED
from ._linear import plain
from .ops import gather_rows_
from .vocab import ActiveVocab


class SlabView(NamedTuple):
    """What ``sparse_head(packed=True)`` takes.

    rows: [B·G, K, D]; ids: int32 [B·G, K]; scale: fp32 [B·G, K] or None;
    group_ids: int64 [M], which buffer and group serves each row of hidden.
    """

    rows: Tensor
    ids: Tensor
    scale: Tensor | None
    group_ids: Tensor


class _SideStream:
    """Run work on a second stream, beside the current one; on a CPU, run it at once."""

    def __init__(self, device: torch.device, stream: torch.cuda.Stream | None) -> None:
        self._device = device
        # PyTorch's streams are non-blocking: the legacy stream does not wait for them.
        if stream is None and device.type == "cuda":
            stream = torch.cuda.Stream(device)
        self.stream = stream
        self._done: torch.cuda.Event | None = None
        self._captured = False

    @contextmanager
    def run(self, *tensors: Tensor) -> Iterator[None]:
        """Run the body on the side stream, after the work already queued on the current one.

        ``tensors``, which the current stream allocated, are kept until the body has run.
        """
        if self.stream is None:
            yield
            return
        self._captured = torch.cuda.is_current_stream_capturing()
        self.stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self.stream):
            yield
            self._done = self.stream.record_event()
        for tensor in tensors:
            tensor.record_stream(self.stream)

    def wait(self) -> None:
        """Let the current stream wait for the last run.

        Skip the wait if only one of the two was captured: an event recorded during capture does
        not order a replay.
        """
        if self._done is not None and self._captured == torch.cuda.is_current_stream_capturing():
            torch.cuda.current_stream(self._device).wait_event(self._done)


class WeightSlab:
    """Keeps the rows of the active tokens side by side, copying only those that changed.

    The buffers are groups of one slab, and which of them is the front is a number on the device: so
    one captured graph serves every step. A slab carries its own ids: a head that reads it can never
    disagree with the rows, whatever the vocabulary has done since.

    On a GPU, :meth:`refresh` only enqueues the copying, on a stream of its own, and :meth:`front`
    lets the current stream wait for it. On a CPU it is done at once; one buffer is enough there.

    In a CUDA graph: capture both in one graph; or refresh outside, and then call :meth:`wait`
    before each replay of the graph that has :meth:`front` in it.

    Args:
        weight: the LM head [V, D], bf16, fp16 or fp32; int8 or float8_e4m3fn with ``weight_scale``.
            With the vocabulary on a GPU it may also lie in pinned host memory: only rows that
            change cross the bus.
        vocab: whose rows to keep.
        dtype: of the slab: weight's (default), or int8 or float8_e4m3fn, quantised row by row.
        buffers: 2 lets a refresh overlap with a draft that reads the other; 1 where they never do.
        weight_scale: fp32 [V] of a quantised weight, on vocab's device.
        stream: on a GPU, where :meth:`refresh` copies. By default one of the 32 that PyTorch hands
            out in turn; should that be the caller's own, nothing overlaps.

    Raises:
        ValueError: weight does not have vocab's V rows or lies on another device; another number of
            buffers.
        TypeError: weight is no plain tensor (a DTensor, torchao's).
    """

    @torch.inference_mode(False)  # or the slab could not be refreshed outside
    def __init__(
        self,
        weight: Tensor,
        vocab: ActiveVocab,
        *,
        dtype: torch.dtype | None = None,
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
        dtype = dtype or weight.dtype
        slots, device = (buffers * vocab.groups, vocab.capacity), vocab.device
        self.rows = torch.zeros(*slots, weight.size(1), dtype=dtype, device=device)
        self.ids = torch.full(slots, -1, dtype=torch.int32, device=device)
        self.scale = (
            torch.ones(slots, dtype=torch.float32, device=device) if dtype in QUANTISED else None
        )
        self._front = torch.zeros(1, dtype=torch.int64, device=device)
        self._buffer = torch.arange(buffers, device=device)[:, None, None]
        self._side_stream = _SideStream(device, stream)

    def refresh(self) -> None:
        """Bring the back buffer up to date with the vocabulary and make it the front."""
        # Taken now: the vocabulary may change before the copying is over.
        ids = self.vocab.ids.clone()
        with self._side_stream.run(ids):
            back = (self._front + 1) % self.buffers
            held = self.ids.view(self.buffers, self.vocab.groups, -1)
            wanted = torch.where(self._buffer == back, ids, held).view_as(self.ids)
            gather_rows_(
                self.rows,
                self.ids,
                self.weight,
                wanted,
                slab_scale=self.scale,
                weight_scale=self.weight_scale,
            )
            self._front.copy_(back)

    def wait(self) -> None:
        """Let the current stream wait for the last refresh, as :meth:`front` does by itself."""
        self._side_stream.wait()

    def front(self, group_ids: Tensor | None = None) -> SlabView:
        """The newest buffer; the current stream waits for it.

        Args:
            group_ids: int32 or int64 [M], each row's group of the vocabulary, -1 for padding.
                Default: group 0, as one id to be expanded over the rows.
        """
        self.wait()
        base = self._front * self.vocab.groups
        if group_ids is not None:
            group_ids = torch.where(group_ids >= 0, base + group_ids, -1)
        return SlabView(self.rows, self.ids, self.scale, base if group_ids is None else group_ids)

    def invalidate(self) -> None:
        """Forget every row, as after a change of the weight; refresh before the next use."""
        self.wait()
        self.ids.fill_(-1)
