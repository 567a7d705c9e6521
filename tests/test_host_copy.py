# SPDX-License-Identifier: Apache-2.0
"""HostCopy: the value that the host sees, with a device that the test controls."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from microspec_kernels._host_copy import HostCopy


class Device:
    """Copies to the host arrive when the test calls :meth:`finish`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done, self.late, self.buffers = True, [], 0
        real = torch.empty

        class Pinned(torch.Tensor):
            def copy_(host, value: Any, non_blocking: bool = False) -> Any:
                assert non_blocking, "the host would wait"
                self.late.append(lambda: host.fill_(value.value))
                return host

        def empty(shape: Any, *, dtype: torch.dtype, pin_memory: bool) -> Any:
            assert pin_memory
            self.buffers += 1
            return real(shape, dtype=dtype).fill_(-1).as_subclass(Pinned)

        monkeypatch.setattr(torch, "empty", empty)
        monkeypatch.setattr(torch.cuda, "Event", lambda: self)

    def record(self) -> None:
        self.done = False

    def query(self) -> bool:
        return self.done

    def finish(self) -> None:
        for copy in self.late:
            copy()
        self.late, self.done = [], True


def on_device(value: float) -> Any:
    device = SimpleNamespace(type="cuda")
    return SimpleNamespace(value=value, device=device, shape=(2,), dtype=torch.float32)


def test_a_value_is_seen_once_it_has_arrived(monkeypatch: pytest.MonkeyPatch) -> None:
    device, host = Device(monkeypatch), HostCopy()
    assert host.poll(on_device(1.0)) is None
    assert host.poll(on_device(2.0)) is None, "the first is on its way; this one is not sent"
    device.finish()
    first = host.poll(on_device(3.0))
    assert first is not None and first.tolist() == [1.0, 1.0]
    again = host.poll(on_device(4.0))
    assert again is not None and again.tolist() == [1.0, 1.0], "the newest that has arrived"
    device.finish()
    assert first.tolist() == [1.0, 1.0], "what was handed out does not change"
    third = host.poll(on_device(5.0))
    assert third is not None and third.tolist() == [3.0, 3.0]
    assert device.buffers == 1, "one buffer"


def test_a_cpu_s_value_is_there_at_once() -> None:
    value = torch.tensor([1.0])
    assert HostCopy().poll(value) is value
