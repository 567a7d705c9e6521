# SPDX-License-Identifier: Apache-2.0
"""bench/tuning/l2_window.py against CUDA's headers, and slab_in_l2.py without a GPU."""

import ctypes
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bench.harness import models
from bench.harness.cuda_graphs import Replay
from bench.harness.draft_layer import weights
from bench.harness.head_check import HeadArm
from bench.tuning import l2_window, slab_in_l2

# A CUDA runtime with the called functions only, which records its calls. It is compiled with the
# real headers, so that structures, enumerators and signatures are NVIDIA's.
RUNTIME = r"""
#include <cstdio>
#include <cuda_runtime_api.h>
extern "C" {
static char said[4096];
static int length, refused = -1;
const char* told() { return said; }
void refuse(int nodes_from) { refused = nodes_from; }
#define SAY(...) length += snprintf(said + length, sizeof(said) - length, __VA_ARGS__)
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  *value = attribute == cudaDevAttrMaxPersistingL2CacheSize ? 3000
           : attribute == cudaDevAttrMaxAccessPolicyWindowSize ? 8000 : -1;
  return device == 0 ? cudaSuccess : cudaErrorInvalidDevice;
}
cudaError_t cudaDeviceSetLimit(cudaLimit limit, size_t value) {
  if (limit == cudaLimitPersistingL2CacheSize) SAY("limit %zu;", value);
  return cudaSuccess;
}
cudaError_t cudaCtxResetPersistingL2Cache(void) { SAY("reset;"); return cudaSuccess; }
cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, size_t* count) {
  if (graph != (cudaGraph_t)0x123456789abc) return cudaErrorInvalidValue;
  if (nodes)
    for (size_t i = 0; i < *count; ++i) nodes[i] = (cudaGraphNode_t)(0x7f0000000000 + i);
  *count = 3;
  return cudaSuccess;
}
cudaError_t cudaGraphNodeGetType(cudaGraphNode_t node, cudaGraphNodeType* type) {
  *type = (size_t)node == 0x7f0000000001 ? cudaGraphNodeTypeMemset : cudaGraphNodeTypeKernel;
  return cudaSuccess;
}
cudaError_t cudaGraphKernelNodeSetAttribute(cudaGraphNode_t node, cudaLaunchAttributeID which,
                                            const cudaLaunchAttributeValue* value) {
  const cudaAccessPolicyWindow& window = value->accessPolicyWindow;
  const int number = (int)((size_t)node - 0x7f0000000000);
  if (number == refused) return cudaErrorNotSupported;
  if (which == cudaLaunchAttributeAccessPolicyWindow &&
      window.hitProp == cudaAccessPropertyPersisting &&
      window.missProp == cudaAccessPropertyStreaming)
    SAY("node %d: %p %zu %.3f;", number, window.base_ptr, window.num_bytes, window.hitRatio);
  return cudaSuccess;
}
cudaError_t cudaGetLastError(void) { SAY("cleared;"); return cudaSuccess; }
size_t size_of_value() { return sizeof(cudaLaunchAttributeValue); }
size_t size_of_window() { return sizeof(cudaAccessPolicyWindow); }
}
"""
MAJOR = 99  # no CUDA has this version


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    if shutil.which("nvcc") is None:
        pytest.skip("needs CUDA's headers, which nvcc knows")
    folder: Path = tmp_path_factory.mktemp("runtime")
    name = f"libcudart.so.{MAJOR}"
    (folder / "runtime.cpp").write_text(RUNTIME)
    command = ["nvcc", "-shared", "-cudart", "none", "-Xcompiler", "-fPIC", "-Xlinker"]
    command += [f"-soname={name}", "-o", name, "runtime.cpp"]
    subprocess.run(command, check=True, cwd=folder)
    loaded = ctypes.CDLL(str(folder / name))
    loaded.told.restype = ctypes.c_char_p
    loaded.size_of_value.restype = loaded.size_of_window.restype = ctypes.c_size_t
    return loaded


@pytest.fixture
def cache(runtime: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> Iterator[l2_window.Cache]:
    """Return the cache of a pretended GPU."""
    pretend_gpu(monkeypatch, f"{MAJOR}.1")
    yield l2_window.Cache()
    runtime.refuse(-1)


def pretend_gpu(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(torch.version, "cuda", version)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)


class Graph:
    def raw_cuda_graph(self) -> int:
        return 0x123456789ABC


def said_by(runtime: ctypes.CDLL, before: int = 0) -> list[str]:
    return [word for word in runtime.told()[before:].decode().split(";") if word]


def test_layouts_are_those_of_the_headers(runtime: ctypes.CDLL) -> None:
    assert ctypes.sizeof(l2_window.AttributeValue) == runtime.size_of_value()
    assert ctypes.sizeof(l2_window.AccessPolicyWindow) == runtime.size_of_window()


def test_kernel_nodes_get_the_window(runtime: ctypes.CDLL, cache: l2_window.Cache) -> None:
    assert (cache.most, cache.largest) == (3000, 8000)
    small, large = torch.zeros(1000, dtype=torch.uint8), torch.zeros(9000, dtype=torch.uint8)
    before = len(runtime.told())
    cache.set_aside(3000)
    cache.keep(Graph(), small)  # type: ignore[arg-type]
    cache.keep(Graph(), large)  # type: ignore[arg-type]
    assert said_by(runtime, before) == [
        "limit 3000",
        "reset",
        f"node 0: {small.data_ptr():#x} 1000 1.000",
        f"node 2: {small.data_ptr():#x} 1000 1.000",
        f"node 0: {large.data_ptr():#x} 8000 0.375",
        f"node 2: {large.data_ptr():#x} 8000 0.375",
    ]


def test_a_refusal_is_told_and_cleared(runtime: ctypes.CDLL, cache: l2_window.Cache) -> None:
    runtime.refuse(2)
    before = len(runtime.told())
    with pytest.raises(l2_window.Unavailable, match=r"cudaGraphKernelNodeSetAttribute.*801"):
        cache.keep(Graph(), torch.zeros(8))  # type: ignore[arg-type]
    assert said_by(runtime, before)[-1] == "cleared"


def test_what_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpu(monkeypatch, "98.0")
    with pytest.raises(l2_window.Unavailable, match=r"libcudart.so.98"):
        l2_window.Cache()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(l2_window.Unavailable, match="sees no CUDA GPU"):
        l2_window.Cache()


def test_a_runtime_without_the_function(cache: l2_window.Cache) -> None:
    with pytest.raises(l2_window.Unavailable, match="has no cudaDance"):
        cache._call("cudaDance")


class Noted:
    """A cache that only records calls, among them the size set aside at each replay."""

    most = 1000

    def __init__(self) -> None:
        self.aside = [0]

    def set_aside(self, size: int) -> None:
        self.aside.append(size)

    def keep(self, graph: torch.cuda.CUDAGraph, rows: Tensor) -> None:
        raise AssertionError("there is no graph to keep it in")


def test_the_limit_alternates_and_is_taken_back() -> None:
    cache = Noted()
    found: dict[str, set[int]] = {}

    def replay(name: str) -> Replay:
        return Replay(
            lambda: found.setdefault(name, set()).add(cache.aside[-1]), 1, None, captured=False
        )

    ways = (slab_in_l2.AS_IT_IS, slab_in_l2.PREFETCHED, slab_in_l2.PERSISTING)
    taken = slab_in_l2.timed({way: replay(way) for way in ways}, replay(slab_in_l2.LAYER), cache, 3)
    assert cache.aside[1:] == [0, 1000, 0, 1000, 0]
    without, with_limit = {0}, {1000}
    assert found == {
        slab_in_l2.AS_IT_IS: without,
        slab_in_l2.PREFETCHED: without,
        slab_in_l2.PERSISTING: with_limit,
        slab_in_l2.LAYER: without | with_limit,
    }
    assert {len(rounds) for pair in taken.values() for rounds in pair} == {6}

    def breaks() -> None:
        raise KeyError

    with pytest.raises(KeyError):
        broken = Replay(breaks, 1, None, captured=False)
        slab_in_l2.timed(dict.fromkeys(ways, broken), replay(slab_in_l2.LAYER), cache, 3)
    assert cache.aside[-1] == 0


def test_a_way_is_timed_beside_the_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        slab_in_l2,
        "time_rounds",
        lambda replays, rounds: {
            name: [2.0 if name == slab_in_l2.LAYER else 3.0] for name in replays
        },
    )
    nothing = Replay(lambda: None, 1, None, captured=False)
    ways = dict.fromkeys(
        (slab_in_l2.AS_IT_IS, slab_in_l2.PREFETCHED, slab_in_l2.PERSISTING), nothing
    )
    taken = slab_in_l2.timed(ways, nothing, Noted(), 1)
    assert taken == {way: ([3.0, 3.0], [2.0, 2.0]) for way in ways}


@pytest.mark.parametrize("prefetch", [False, True])
def test_the_whole_layer_runs_before_the_head(prefetch: bool) -> None:
    layer = slab_in_l2.Layer(models.TOY, 2, "cpu", weights(models.TOY))
    order: list[str] = []
    layer.early, layer.last = (lambda: order.append("early")), (lambda: order.append("last"))
    arm = HeadArm(lambda: (order.append("head"), torch.ones(1))[1:], {}, 0)
    slab = torch.zeros(4, 8, dtype=torch.int8) if prefetch else None
    (result,) = slab_in_l2.beside(layer, arm, slab)()
    assert order == ["early", "last", "head"] and result == 1


def test_figures_without_a_gpu() -> None:
    table = slab_in_l2.measure(models.TOY, 300, [1, 4], 2, Noted(), device="cpu")
    assert {(row["M"], row["arm"], row["way"]) for row in table} == {
        (m, f"sparse_head packed{kind}", way)
        for m in (1, 4)
        for kind in ("", " fp8", " int8")
        for way in (slab_in_l2.AS_IT_IS, slab_in_l2.PERSISTING, slab_in_l2.PREFETCHED)
    }
    for row in table:
        assert (row["set_aside_MB"] > 0) == (row["way"] == slab_in_l2.PERSISTING)
        assert row["whole_us"] > 0 and row["layer_us"] > 0
        assert row["slab_MB"] == 300 * models.TOY.dim * (2 if row["arm"][-1] == "d" else 1) / 1e6
