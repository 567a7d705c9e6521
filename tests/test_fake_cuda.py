# SPDX-License-Identifier: Apache-2.0
"""The stand-in for a CUDA device (tests/fake_cuda) refuses what a GPU would refuse."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import fake_cuda
import pytest
import torch
from compare import assert_bitwise
from fake_cuda import FakeCudaError
from generators import gather_case, head_case
from gpu import on_device
from torch import Tensor

import microspec_kernels as mk

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(torch.cuda.is_available(), reason="there is a real GPU"),
]


@pytest.fixture(autouse=True)
def _installed() -> Iterator[None]:
    with fake_cuda.installed():
        yield
    assert not torch.cuda.is_available() and not torch.zeros(1).is_cuda


@contextmanager
def capture(warm: Callable[[], object] | None = None) -> Iterator[torch.cuda.CUDAGraph]:
    """Capture what is called inside, after a call of ``warm`` outside."""
    if warm is not None:
        warm()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        yield graph


@contextmanager
def sync_debug() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def there(*shape: int) -> Tensor:
    return torch.arange(1, 1 + torch.Size(shape).numel(), device="cuda").view(shape)


def test_tensors_keep_their_device() -> None:
    x = there(3)
    made = torch.zeros_like(x), x.new_empty(2), torch.zeros(1, device=0), torch.zeros(1).cuda(0)
    for tensor in (x, x + 1, x[1:], *made, x.float(), x.to(x.double())):
        assert tensor.device == torch.device("cuda", 0) and tensor.is_cuda
    host = torch.arange(3)
    assert torch.as_tensor(host, device="cuda").data_ptr() != host.data_ptr()
    assert host.to("cuda").is_cuda and host.cuda().is_cuda and host.to(x).is_cuda
    for tensor in (host, x.cpu(), x.to("cpu"), x.to(host), torch.zeros_like(x, device="cpu")):
        assert tensor.device.type == "cpu" and not tensor.is_cuda
    with torch.device("cuda"):
        assert torch.ones(2).is_cuda


@pytest.mark.parametrize(
    "call",
    [
        lambda x, host: x + host,
        lambda x, host: torch.cat((x, host)),
        lambda x, host: host[x - 1],
        lambda x, host: x.index_copy_(0, host, host),
        lambda x, host: x.__setitem__(x - 1, host),
        lambda x, host: x.random_(generator=torch.Generator()),
        lambda x, host: host.random_(generator=torch.Generator("cuda")),
        lambda x, host: host.record_stream(torch.cuda.Stream()),
        lambda x, host: x.pin_memory(),
        lambda x, host: torch.zeros(1, device="cuda:1"),
        lambda x, host: torch.mm(x[None].half(), x[:, None].half(), out_dtype=torch.float64),
    ],
)
def test_two_devices_do_not_mix(call: Callable[..., Any]) -> None:
    with pytest.raises(FakeCudaError):
        call(there(3), torch.arange(3))


def test_where_two_devices_may_meet() -> None:
    x, host = there(3), torch.arange(3)
    assert (x * torch.tensor(2)).tolist() == [2, 4, 6]
    assert x[host].tolist() == [1, 2, 3]
    host.copy_(x)
    x[1:] = torch.tensor([8, 9])
    assert (host.tolist(), x.tolist()) == ([1, 2, 3], [1, 8, 9])
    with pytest.raises(TypeError, match="numpy"):
        x.numpy()


WAITING: list[Callable[[Tensor], object]] = [
    lambda x: x[0].item(),
    lambda x: x.tolist(),
    lambda x: bool(x[0]),
    lambda x: f"{x}",
    lambda x: x.cpu(),
    lambda x: x.to("cpu"),
    lambda x: x.nonzero(),
    lambda x: x.unique(),
    lambda x: torch.equal(x, x),
    lambda x: torch.where(x > 1),
    lambda x: x[x > 1],
    lambda x: x.__setitem__(x > 1, x[:2] + 1),
    lambda x: x[x[0]],
    lambda x: x[[0, 1]],
    lambda x: x[torch.arange(2)],
    lambda x: x.repeat_interleave(x),
    lambda x: x.copy_(torch.arange(3)),
    lambda x: x.copy_(torch.arange(3).pin_memory()),
    lambda x: torch.arange(3).to("cuda"),
    lambda x: torch.tensor([1, 2], device="cuda"),
    lambda x: torch.cuda.synchronize(),
    lambda x: torch.cuda.current_stream().synchronize(),
    lambda x: torch.cuda.Event().synchronize(),
]


@pytest.mark.parametrize("call", WAITING)
def test_what_waits_for_the_device(call: Callable[[Tensor], object]) -> None:
    x = there(3)
    call(x)
    with sync_debug(), pytest.raises(FakeCudaError):
        call(x)
    with pytest.raises(FakeCudaError, match=r"synchronizing|Unsupported"), capture(lambda: call(x)):
        call(x)
    assert not torch.cuda.is_current_stream_capturing()


def test_a_capture_runs_nothing_and_each_replay_once() -> None:
    x, made = there(3), there(2)

    def call() -> None:
        x.add_(1)
        x[:1] = 7
        torch.mul(made, 2, out=made)

    with capture(call) as graph:
        call()
    assert (x.tolist(), made.tolist()) == ([7, 3, 4], [2, 4])
    graph.replay()
    assert (x.tolist(), made.tolist()) == ([7, 4, 5], [4, 8])


def test_what_does_not_wait() -> None:
    x, pinned, free = there(3), torch.arange(3).pin_memory(), torch.empty(3, dtype=torch.int64)

    def call() -> None:
        x.copy_(pinned, non_blocking=True)
        x[x > 1] = 7
        x.repeat_interleave(x, output_size=8)
        x[x - x].to("cpu", torch.int32, non_blocking=True)
        torch.cuda.current_stream().record_event()

    with sync_debug():
        call()
        x.copy_(free, non_blocking=True)  # pageable: the host waits for its memory only
    with capture(call):
        call()
    with pytest.raises(FakeCudaError), capture():
        x.copy_(free, non_blocking=True)


def test_a_replay_makes_the_calls_again_and_no_python() -> None:
    x, host = there(3), []

    def step() -> Tensor:
        host.append(1)
        x.mul_(2)
        return x + 1

    with capture(step) as graph:
        result = step()
    x.copy_(torch.tensor([5, 6, 7]))
    address = result.data_ptr()
    for factor in (2, 4):
        graph.replay()
        assert result.tolist() == [5 * factor + 1, 6 * factor + 1, 7 * factor + 1]
    assert (len(host), result.data_ptr()) == (2, address)
    graph.reset()
    with pytest.raises(FakeCudaError, match="expected a captured graph"):
        graph.replay()


def test_a_capture_meets_nothing_new() -> None:
    x = there(4)
    shorter = x[:2]
    with pytest.raises(FakeCudaError, match=r"cumsum of \[\(\[2\]"), capture(lambda: x.cumsum(0)):
        x.cumsum(0)
        shorter.cumsum(0)
    double = torch.compile(lambda t: t)
    with pytest.raises(FakeCudaError, match="compiled function"), capture(lambda: double(x)):
        double(x)
        double(shorter)


def on_side(side: torch.cuda.Stream, call: Callable[[], object]) -> None:
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()


def test_streams_of_a_capture() -> None:
    x, side, other = there(3), torch.cuda.Stream(), torch.cuda.Stream()

    def work() -> Tensor:
        return x + 1

    with capture(work) as graph:
        on_side(side, work)
        on_side(other, work)
        side.wait_stream(other)
        torch.cuda.current_stream().wait_stream(side)
    graph.replay()
    with pytest.raises(FakeCudaError, match="Unjoined"), capture():
        on_side(side, work)
    with pytest.raises(FakeCudaError, match="Unjoined"), capture():
        on_side(side, work)
        torch.cuda.current_stream().wait_stream(side)
        on_side(side, work)
    outside = pytest.raises(FakeCudaError, match="outside of the capture")
    with outside, capture(), torch.cuda.stream(side):
        work()


def test_events_do_not_cross_a_captures_border() -> None:
    before = torch.cuda.current_stream().record_event()
    with pytest.raises(FakeCudaError, match="Isolation"), capture():
        torch.cuda.current_stream().wait_event(before)
    with capture():
        inside = torch.cuda.current_stream().record_event()
        with pytest.raises(FakeCudaError):
            inside.query()
    with pytest.raises(FakeCudaError, match="orders nothing outside"):
        torch.cuda.current_stream().wait_event(inside)
    with pytest.raises(FakeCudaError, match="enable_timing"):
        before.elapsed_time(before)


def test_graphs_begin_and_end_as_in_torch() -> None:
    graph = torch.cuda.CUDAGraph(keep_graph=True)
    with pytest.raises(FakeCudaError, match="non-default"):
        graph.capture_begin()
    with torch.cuda.stream(torch.cuda.Stream()):
        graph.capture_begin()
        with pytest.raises(FakeCudaError, match="inside a capture"):
            torch.cuda.CUDAGraph().capture_begin()
        graph.capture_end()
    assert graph.raw_cuda_graph()
    graph.instantiate()
    graph.replay()
    with capture() as plain, pytest.raises(FakeCudaError, match="keep_graph"):
        plain.raw_cuda_graph()


def head(weight: Tensor, ids: Tensor) -> Tensor:
    hidden = torch.ones(1, 8, device="cuda")
    return mk.sparse_head(hidden, weight, ids, 3)[1]


def test_the_ops_have_the_rules_of_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.eye(9, 8, device="cuda").cumsum(0)
    ids = torch.tensor([2, 99, 5, -7], dtype=torch.int32, device="cuda")
    assert head(weight, ids).tolist() == [[5, 2, -1]]
    with pytest.raises(ValueError, match=r"sparse_head: weight: expected a tensor on cuda"):
        head(weight.cpu(), ids)
    monkeypatch.setenv("MICROSPEC_VALIDATE", "1")
    with pytest.raises(IndexError, match="active_ids"):
        head(weight, ids)


def test_op_tests_move_their_tensors() -> None:
    """tests/gpu/on_device.py takes the memory between rows along, and brings all of it back."""
    want = gather_case(5, dim=64, vocab_size=90, capacity=50, dtype=torch.bfloat16, gap=1)
    got = want.copy()
    mk.gather_rows_(**want.arguments())
    on_device.op_on_device("gather_rows_")(**got.arguments())
    for name, tensor in want.arguments().items():
        if tensor is not None:
            assert_bitwise(got.arguments()[name], tensor, name)
    case = head_case(1, m=3, dim=64, vocab_size=90, capacity=50, gap=1, exact=True)
    found = on_device.op_on_device("sparse_head")(*case.tensors(), 5, **case.options())
    for one, other in zip(found, mk.sparse_head(*case.tensors(), 5, **case.options()), strict=True):
        assert_bitwise(one, other)


def test_a_vocabulary_and_a_slab_in_one_graph() -> None:
    vocab = mk.ActiveVocab(20, 3, device="cuda")
    slab = mk.WeightSlab(torch.eye(20, device="cuda"), vocab)
    tokens = torch.tensor([4, 5], device="cuda")

    def step() -> Tensor:
        vocab.update(tokens)
        slab.refresh()
        return slab.front().ids.clone()

    with capture(step) as graph:
        ids = step()
    for new in ([6, 7], [8, 9]):
        tokens.copy_(torch.tensor(new))
        graph.replay()
        assert set(new) <= set(ids.flatten().tolist())
        assert bool(vocab.contains(tokens).all())


def test_a_replay_waits_for_what_an_external_event_recorded_last() -> None:
    vocab = mk.ActiveVocab(20, 2, device="cuda")
    slab = mk.WeightSlab(torch.eye(20, device="cuda"), vocab, buffers=1)
    event, side = torch.cuda.Event(external=True), slab.stream
    assert side is not None

    def read() -> Tensor:
        event.wait()
        return slab.ids.clone()

    def gather() -> None:
        slab.refresh()
        event.record(side)

    gather()
    with capture(read) as graph:
        ids = read()
    unordered = torch.cuda.Event()
    unordered.record()
    with pytest.raises(FakeCudaError, match="Isolation"), capture():
        unordered.wait()
    with fake_cuda.late(lambda stream: stream == side):
        for tokens in ([4, 5], [6, 7]):
            vocab.update(torch.tensor(tokens, device="cuda"))
            gather()  # nothing on the host waits from here on
            before = slab.ids.clone()
            graph.replay()
            assert set(ids.flatten().tolist()) == set(tokens) != set(before.flatten().tolist())


def test_an_op_may_not_write_to_what_late_work_uses() -> None:
    vocab = mk.ActiveVocab(20, 2, device="cuda")
    slab = mk.WeightSlab(torch.eye(20, device="cuda"), vocab, buffers=1)
    tokens = there(2)
    with fake_cuda.late(lambda stream: stream == slab.stream):
        slab.refresh_beside_graphs()
        with pytest.raises(FakeCudaError, match="a race"):
            vocab.update(tokens)
        slab.wait()
        vocab.update(tokens)


def test_other_processes_have_the_device() -> None:
    program = "import torch; print(torch.cuda.get_device_name(), torch.zeros(1).cuda().device)"
    command = [sys.executable, "-c", program]
    for words in (command, [sys.executable, "-c", f"import subprocess; subprocess.run({command})"]):
        done = subprocess.run(
            words, env=fake_cuda.environment(), capture_output=True, text=True, check=True
        )
        assert done.stdout == "NVIDIA H200 cuda:0\n", done.stderr
