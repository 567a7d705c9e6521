# SPDX-License-Identifier: Apache-2.0
"""The code that serves a tensor's device, as far as this is visible without a GPU."""

import pytest
import torch
from schemas import SCHEMAS
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import microspec_kernels
from microspec_kernels import _library, backends

built_with_nvcc = pytest.mark.skipif(
    not backends.HAS_CUDA, reason="the library was built without nvcc"
)


def served_by(op: str, key: str) -> str:
    """Return the file that registered the code for a dispatch key."""
    table = torch._C._dispatch_dump_table(f"microspec::{op}")
    (line,) = (line for line in table.splitlines() if line.startswith(f"{key}: "))
    return line


@pytest.mark.parametrize("op", SCHEMAS)
def test_library_serves_the_cpu(op: str) -> None:
    assert "registration.cpp" in served_by(op, "CPU")


@built_with_nvcc
@pytest.mark.parametrize("op", SCHEMAS)
def test_library_serves_gpus_if_it_can(op: str) -> None:
    assert "registration.cpp" in served_by(op, "CUDA")


@pytest.mark.parametrize("key", ["CPU", "CUDA"])
@pytest.mark.parametrize("op", SCHEMAS)
def test_reference_serves_both_and_leaves_no_trace(op: str, key: str) -> None:
    before = served_by(op, key)
    microspec_kernels.backend("reference")
    assert "backends.py" in served_by(op, key)
    microspec_kernels.backend("cpu")
    assert served_by(op, key) == before


def test_cuda_is_a_backend_only_if_it_is_there() -> None:
    assert (_library.cuda_architectures() is not None) == backends.HAS_CUDA
    if backends.HAS_CUDA:
        assert microspec_kernels.backend("cuda") == "cuda"
    else:
        with pytest.raises(ValueError, match="built without nvcc"):
            microspec_kernels.backend("cuda")


def on(device: str, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=device)


def vocab_on(device: str) -> tuple[Tensor, ...]:
    return (
        on(device, 2, 5, dtype=torch.int32),
        on(device, 2, 5, dtype=torch.int64),
        on(device, 2, 20, dtype=torch.int32),
        on(device, 2, dtype=torch.int64),
    )


@pytest.mark.parametrize("device", ["cuda:0", "meta"])
def test_fakes_say_shape_dtype_and_device(device: str) -> None:
    with FakeTensorMode():
        hidden, weight = on(device, 3, 8), on(device, 20, 8)
        ids = on(device, 5, dtype=torch.int32)
        logits, token_ids, logsumexp = torch.ops.microspec.sparse_head(hidden, weight, ids, 2)
        dense = torch.ops.microspec.sparse_logits(hidden, weight, ids)
        results = [logits, token_ids, logsumexp, dense]
        assert [tuple(r.shape) for r in results] == [(3, 2), (3, 2), (3,), (3, 5)]
        assert [r.dtype for r in results] == [torch.float32, torch.int64, *[torch.float32] * 2]
        assert {str(r.device) for r in results} == {device}
        slab = on(device, 5, 8)
        assert torch.ops.microspec.gather_rows_(slab, ids.clone(), weight, ids) is None
        tokens = on(device, 2, 7, dtype=torch.int64)
        assert torch.ops.microspec.vocab_update_(*vocab_on(device), tokens) is None
        counts, ranks, seen = (
            on(device, *shape, dtype=torch.int32) for shape in ((1, 20), (20,), (2, 1))
        )
        assert torch.ops.microspec.vocab_count_(counts, seen, tokens) is None
        counting = {
            "lengths": on(device, 2, dtype=torch.int32),
            "token_groups": on(device, 14, dtype=torch.int32),
            "tally": on(device, 2 * 6 + 20, dtype=torch.int32),
            "num_lists": 1,
        }
        observed = (*vocab_on(device), tokens)
        assert torch.ops.microspec.vocab_observe_(*observed, **counting) is None
        lists = on(device, 2, dtype=torch.int64)
        assert torch.ops.microspec.vocab_refill_(*vocab_on(device), counts, ranks, lists) is None
        roots = on(device, 2, dtype=torch.int64)
        places = [on(device, 2, 20, dtype=torch.int64) for _ in range(2)]
        pool = (*places, on(device, 2, 20))
        level = (on(device, 2, 4), on(device, 2, 4, dtype=torch.int64), on(device, 2))
        grown = torch.ops.microspec.tree_grow_(*pool, *level, 3)
        assert [tuple(r.shape) for r in grown] == [(2, 3)] * 3
        tree = torch.ops.microspec.tree_cut(roots, *pool, 6)
        assert [tuple(r.shape) for r in tree] == [(2, 7)] * 3 + [(2, 7, 7)]
        assert tree[3].dtype == torch.bool
        tokens, parents, *_ = tree
        accepted = torch.ops.microspec.tree_accept(tokens, parents, tokens, 3)
        assert [tuple(r.shape) for r in accepted] == [(2, 4), (2, 4), (2, 7), (2,), (2,)]
        integers = [*grown, *tree[:3], *accepted]
        assert {(r.dtype, str(r.device)) for r in integers} == {(torch.int64, device)}


def test_fakes_know_that_devices_differ() -> None:
    with FakeTensorMode():
        ids = on("cuda", 5, dtype=torch.int32)
        with pytest.raises(ValueError, match="weight: expected a tensor on cuda:0, got one on cpu"):
            microspec_kernels.sparse_head(on("cuda", 3, 8), on("cpu", 20, 8), ids, 2)
        with pytest.raises(ValueError, match="tokens: expected a tensor on cuda:0, got one on cpu"):
            tokens = on("cpu", 2, 7, dtype=torch.int64)
            microspec_kernels.vocab_update_(*vocab_on("cuda"), tokens)
        with pytest.raises(
            ValueError, match="candidates: expected a tensor on cuda:0, got one on cpu"
        ):
            tokens, others = on("cuda", 7, dtype=torch.int64), on("cpu", 7, dtype=torch.int64)
            microspec_kernels.vocab_observe_(*vocab_on("cuda"), tokens, candidates=others)


def test_a_slab_on_a_gpu_may_come_from_host_memory() -> None:
    with FakeTensorMode():
        ids = on("cuda", 5, dtype=torch.int32)
        slab = on("cuda", 5, 8)
        microspec_kernels.gather_rows_(slab, ids.clone(), on("cpu", 20, 8), ids)
        with pytest.raises(ValueError, match="weight: expected a tensor on cpu, got one on cuda"):
            held = on("cpu", 5, dtype=torch.int32)
            microspec_kernels.gather_rows_(on("cpu", 5, 8), held, on("cuda", 20, 8), held)
