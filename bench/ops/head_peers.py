# SPDX-License-Identifier: Apache-2.0
"""What others do for the head's job, each in its best form.

dense       the whole LM head. "eager" is called from Python; all others are replayed from a graph.
static      FR-Spec (arXiv 2502.14856): a fixed slab of 32768 rows and a remap of the ids.
NanoSpec    the public code of arXiv 2605.26444, written anew: cuBLAS over a packed slab, fp32
            log-probabilities, then separate kernels for top-k and remap. Its rows of hidden are
            padded to a multiple of 16 free of charge, since the layer before could write them so.
            We add what that code does not have: the graph, a product that leaves cuBLAS in fp32,
            `torch.compile`, and FlashInfer's top-k.
"""

import importlib.util
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.harness.head_check import HeadArm
from bench.harness.inputs import in_turn
from bench.harness.sizes import K_BEST, STATIC

PADDED = 16  # rows of hidden: a multiple of the tensor cores' tile

Select = Callable[[Tensor, int], Any]


def product(x: Tensor, weight: Tensor) -> Tensor:
    """Return x · weightᵀ in fp32: cuBLAS's accumulator, or on a CPU the rounded product."""
    if x.is_cuda:
        accumulated: Tensor = torch.mm(x, weight.t(), out_dtype=torch.float32)
        return accumulated
    return F.linear(x, weight).float()


def capped(logits: Tensor, softcap: float) -> Tensor:
    return softcap * torch.tanh(logits / softcap) if softcap > 0 else logits


def plain_topk(
    x: Tensor, weight: Tensor, ids: Tensor | None, softcap: float
) -> tuple[Tensor, Tensor]:
    """Do the job in a few lines of PyTorch, in hidden's dtype throughout."""
    logits = capped(F.linear(x, weight), softcap)
    value, index = logits.log_softmax(-1).topk(K_BEST)
    return value, index if ids is None else ids[index]


def nanospec_topk(x: Tensor, slab: Tensor, ids: Tensor, num_tokens: int, softcap: float) -> Any:
    """Do the job as NanoSpec does, with fp32 log-probabilities of the first ``num_tokens`` rows."""
    logits = capped(F.linear(x, slab)[:num_tokens].float(), softcap)
    value, index = logits.log_softmax(-1).topk(K_BEST)
    return value, ids[index]


def fp32_product_topk(
    x: Tensor,
    slab: Tensor,
    ids: Tensor,
    num_tokens: int,
    softcap: float,
    select: Select = torch.topk,
) -> tuple[Tensor, ...]:
    """Do the same from an fp32 product; only the selected logits become log-probabilities."""
    logits = capped(product(x, slab)[:num_tokens], softcap)
    value, index = select(logits, K_BEST)
    return value, ids[index], logits.logsumexp(-1)


def padded(hidden: Tensor) -> Tensor:
    return F.pad(hidden, (0, 0, 0, -len(hidden) % PADDED))


@cache
def compiled(job: Callable[..., Any]) -> Callable[..., Any]:
    """Compile `job` for each shape: one kernel for all shapes would be slower for each."""
    torch._dynamo.config.recompile_limit = 1024
    return torch.compile(job, dynamic=False)


@cache
def flashinfer_top_k() -> Select | None:
    """Return FlashInfer's radix selection, or None if no installed version has or can build it."""
    if importlib.util.find_spec("flashinfer") is None:
        return None
    import flashinfer

    def select(logits: Tensor, k: int) -> Any:
        return flashinfer.top_k(logits, k, sorted=True)

    try:
        select(torch.rand(1, 4096, device="cuda"), K_BEST)
    except (AttributeError, RuntimeError, OSError) as error:
        print(f"no FlashInfer top-k: {error}", file=sys.stderr)
        return None
    return select


def peers(
    weight: Tensor,
    sets: list[Tensor],
    slabs: list[Tensor],
    hidden: Tensor,
    softcap: float = 0.0,
    compile_too: bool = False,
) -> dict[str, HeadArm]:
    """Return the arms of the others by name."""
    vocab_size, rows = len(weight), len(hidden)
    everything = torch.arange(vocab_size, dtype=torch.int32, device=weight.device)
    count = min(STATIC, vocab_size)
    # The most frequent tokens lie all over the vocabulary; their rows are packed once.
    fixed = torch.randperm(vocab_size, device=weight.device)[:count].int()
    fixed_slab = weight.index_select(0, fixed)
    x = padded(hidden)

    def dense(job: Callable[..., Any] = plain_topk, eager: bool = False) -> HeadArm:
        operands = {"weight": weight, "active_ids": everything, "softcap": softcap}
        call = lambda: job(hidden, weight, None, softcap)  # noqa: E731
        return HeadArm(call, operands, weight.nbytes, rounded=True, eager=eager)

    def static(job: Callable[..., Any]) -> HeadArm:
        operands = {"weight": fixed_slab, "active_ids": fixed, "softcap": softcap, "packed": True}
        call = lambda: job(x, fixed_slab, fixed, rows, softcap)  # noqa: E731
        return HeadArm(call, operands, fixed_slab.nbytes, rounded=True)

    def active(job: Callable[[int], Any], packed: bool = True) -> HeadArm:
        operands = {
            "weight": slabs[0] if packed else weight,
            "active_ids": sets[0],
            "softcap": softcap,
            "packed": packed,
        }
        return HeadArm(in_turn(job, len(sets)), operands, slabs[0].nbytes, rounded=True)

    def nanospec(job: Callable[..., Any], *more: Any) -> HeadArm:
        return active(lambda i: job(x, slabs[i], sets[i], rows, softcap, *more))

    arms = {
        "index_select + linear + log_softmax + topk": active(
            lambda i: plain_topk(hidden, weight.index_select(0, sets[i]), sets[i], softcap), False
        ),
        "linear on a packed slab + log_softmax + topk": active(
            lambda i: plain_topk(hidden, slabs[i], sets[i], softcap)
        ),
        "NanoSpec": nanospec(nanospec_topk),
        "NanoSpec, fp32 product": nanospec(fp32_product_topk),
        "static 32k": static(nanospec_topk),
        "static 32k, fp32 product": static(fp32_product_topk),
        "dense linear + log_softmax + topk": dense(),
        "dense, eager": dense(eager=True),
    }
    if compile_too:
        arms["NanoSpec, compiled"] = nanospec(compiled(nanospec_topk))
        arms["static 32k, compiled"] = static(compiled(nanospec_topk))
        arms["dense, compiled"] = dense(compiled(plain_topk))
    if weight.is_cuda and (select := flashinfer_top_k()) is not None:
        arms["NanoSpec, FlashInfer top-k"] = nanospec(fp32_product_topk, select)
    return arms
