# SPDX-License-Identifier: Apache-2.0
"""The mode that sees every call of PyTorch: it passes marks on, and refuses as a GPU would."""

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from . import ops
from .graphs import tensors_in
from .memory import FakeCudaError, as_device, mark, on_cuda, storage_of
from .moves import MOVES
from .rules import check_devices, check_generator, waits
from .served import SERVED
from .streams import device, refuse_waiting

FROM_HOST = {torch.tensor, torch.as_tensor, Tensor.new_tensor}
PASSED_ON = {"__get__", "__set__", "_parse_to"}


class FakeCuda(TorchFunctionMode):
    """Serves tensors of the pretended device by the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.before_captures: set[Any] = set()  # the calls that ran outside of captures

    def __torch_function__(
        self,
        function: Any,
        types: Any,
        arguments: tuple[Any, ...] = (),
        options: dict[str, Any] | None = None,
    ) -> Any:
        options = dict(options or {})
        name = getattr(function, "__name__", "")
        if name in PASSED_ON or "profiler" in str(function):
            return function(*arguments, **options)
        if function in MOVES:
            return MOVES[function](self.call, function, arguments, options)
        return self.call(function, arguments, options)

    def call(
        self, function: Any, arguments: tuple[Any, ...], options: dict[str, Any], to: Any = None
    ) -> Any:
        """Check and make a call; its new tensors are on the device that it or its arguments name.

        Args:
            to: the device of the result; None: the device of the arguments.
        """
        wanted = to or as_device(options.get("device"))
        if wanted is not None and wanted.type == "cuda" and "device" in options:
            options["device"] = "cpu"
        pinned = bool(options.pop("pin_memory", False))
        given = tensors_in((arguments, options))
        there = [on_cuda(tensor) for tensor in given]
        result_there = wanted.type == "cuda" if wanted is not None else any(there)
        if any(there):
            check_devices(function, arguments, given, there)
            if what := waits(function, arguments, options):
                refuse_waiting(what)
            arguments, options = ops.prepared(function, arguments, options)
        if function in FROM_HOST and result_there:
            refuse_waiting(f"{function.__name__}(…, device='cuda')")
        check_generator(options.get("generator"), result_there)
        held = {storage._cdata for t in given if (storage := storage_of(t)) is not None}
        served = SERVED.get(str(function), function) if any(there) else function
        if device.capture is not None:
            device.capture.keep_what_is_written(function, given, options)
        result: Any = None
        if device.capture is None and any(there) and ops.writes_in_place(function):
            writes = ops.written(function, arguments, options)
            device.run(device.current, lambda: served(*arguments, **options), held, writes)
        else:
            result = served(*arguments, **options)
        results = tensors_in(result)
        for tensor in results:
            storage = storage_of(tensor)
            if storage is not None and storage._cdata not in held:
                mark(tensor, cuda=result_there, pinned=pinned)
        if result_there or any(there):
            self.note(function, given, (served, arguments, options, results))
        return result

    def note(self, function: Any, given: list[Tensor], call: Any) -> None:
        """Add a call to the capture, or else remember that it ran outside of one."""
        kind = (function, *((t.shape, t.dtype) for t in given))
        if device.capture is None:
            self.before_captures.add(kind)
            return
        if kind not in self.before_captures:
            sizes = [(list(t.shape), str(t.dtype)) for t in given]
            raise FakeCudaError(f"{function.__name__} of {sizes} runs first in a capture")
        device.capture.add(call)
