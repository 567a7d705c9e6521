"""What others do for the head's job, each given its best: dense, static, NanoSpec, selectors.

dense       the whole LM head. "eager" is called from Python, all others are replayed from a graph.
static      FR-Spec (arXiv 2502.14856): a fixed slab of 32768 rows and a remap of the ids.
NanoSpec    what the public code of arXiv 2605.26444 does, written anew: cuBLAS over a packed slab,
            fp32 log-probabilities, then separate kernels for top-k and remap. Its rows of hidden
            are padded to a multiple of 16, free of charge, as the layer before could write them.
            Beyond that code: the graph, a product that leaves cuBLAS in fp32, `torch.compile`, and
            FlashInfer's top-k.
"""

import importlib.util
import sys
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .head_arms import K_BEST, Arm, in_turn, sparse_arms

STATIC = 32768
PADDED = 16  # rows of hidden: a multiple of the tensor cores' tile

Select = Callable[[Tensor, int], Any]


def product(x: Tensor, weight: Tensor) -> Tensor:
    """x · weightᵀ as cuBLAS accumulates it, in fp32; on a CPU, from the rounded product."""
    if x.is_cuda:
        wide: Tensor = torch.mm(x, weight.t(), out_dtype=torch.float32)
        return wide
    return F.linear(x, weight).float()


def capped(logits: Tensor, softcap: float) -> Tensor:
    return softcap * torch.tanh(logits / softcap) if softcap > 0 else logits


def usual(x: Tensor, weight: Tensor, ids: Tensor | None, softcap: float) -> tuple[Tensor, Tensor]:
    """The few lines that everybody writes, in hidden's dtype throughout."""
    logits = capped(F.linear(x, weight), softcap)
    value, index = logits.log_softmax(-1).topk(K_BEST)
    return value, index if ids is None else ids[index]


def careful(x: Tensor, slab: Tensor, ids: Tensor, rows: int, softcap: float) -> Any:
    """NanoSpec's: padded rows x, of which the first ``rows`` count, and fp32 log-probabilities."""
    logits = capped(F.linear(x, slab)[:rows].float(), softcap)
    value, index = logits.log_softmax(-1).topk(K_BEST)
    return value, ids[index]


def wide(
    x: Tensor, slab: Tensor, ids: Tensor, rows: int, softcap: float, select: Select = torch.topk
) -> tuple[Tensor, ...]:
    """As ``careful``, from an fp32 product; only the selected become log-probabilities."""
    logits = capped(product(x, slab)[:rows], softcap)
    value, index = select(logits, K_BEST)
    return value, ids[index], logits.logsumexp(-1)


def padded(hidden: Tensor) -> Tensor:
    return F.pad(hidden, (0, 0, 0, -len(hidden) % PADDED))


@cache
def compiled(job: Callable[..., Any]) -> Callable[..., Any]:
    """One compilation per shape: a kernel for all shapes would be no arm's best."""
    torch._dynamo.config.recompile_limit = 1024
    return torch.compile(job, dynamic=False)


@cache
def flashinfer_top_k() -> Select | None:
    """FlashInfer's radix selection, where a version that has it is installed and can build it."""
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
) -> dict[str, Arm]:
    vocab_size, rows = len(weight), len(hidden)
    everything = torch.arange(vocab_size, dtype=torch.int32, device=weight.device)
    count = min(STATIC, vocab_size)
    # The most frequent tokens lie all over the vocabulary; their rows are packed once, for good.
    fixed = torch.randperm(vocab_size, device=weight.device)[:count].int()
    fixed_slab = weight.index_select(0, fixed)
    x = padded(hidden)

    def dense(job: Callable[..., Any] = usual, eager: bool = False) -> Arm:
        operands = {"weight": weight, "active_ids": everything, "softcap": softcap}
        call = lambda: job(hidden, weight, None, softcap)  # noqa: E731
        return Arm(call, operands, weight.nbytes, rounded=True, eager=eager)

    def static(job: Callable[..., Any]) -> Arm:
        operands = {"weight": fixed_slab, "active_ids": fixed, "softcap": softcap, "packed": True}
        call = lambda: job(x, fixed_slab, fixed, rows, softcap)  # noqa: E731
        return Arm(call, operands, fixed_slab.nbytes, rounded=True)

    def active(job: Callable[[int], Any], packed: bool = True) -> Arm:
        operands = {
            "weight": slabs[0] if packed else weight,
            "active_ids": sets[0],
            "softcap": softcap,
            "packed": packed,
        }
        return Arm(in_turn(job, len(sets)), operands, slabs[0].nbytes, rounded=True)

    def nanospec(job: Callable[..., Any], *more: Any) -> Arm:
        return active(lambda i: job(x, slabs[i], sets[i], rows, softcap, *more))

    arms = {
        "index_select + linear + log_softmax + topk": active(
            lambda i: usual(hidden, weight.index_select(0, sets[i]), sets[i], softcap), False
        ),
        "linear on a packed slab + log_softmax + topk": active(
            lambda i: usual(hidden, slabs[i], sets[i], softcap)
        ),
        "NanoSpec": nanospec(careful),
        "NanoSpec, fp32 product": nanospec(wide),
        "static 32k": static(careful),
        "static 32k, fp32 product": static(wide),
        "dense linear + log_softmax + topk": dense(),
        "dense, eager": dense(eager=True),
    }
    if compile_too:
        arms["NanoSpec, compiled"] = nanospec(compiled(careful))
        arms["static 32k, compiled"] = static(compiled(careful))
        arms["dense, compiled"] = dense(compiled(usual))
    if weight.is_cuda and (select := flashinfer_top_k()) is not None:
        arms["NanoSpec, FlashInfer top-k"] = nanospec(wide, select)
    return arms


def arms_for(
    weight: Tensor,
    sets: list[Tensor],
    hidden: Tensor,
    quantised: Sequence[torch.dtype] = (),
    softcap: float = 0.0,
    *,
    triton: bool = False,
    compile_too: bool = False,
    only: Sequence[str] = ("",),
) -> dict[str, Arm]:
    """Ours and the others', those with one of ``only`` in their names."""
    slabs = [weight.index_select(0, ids) for ids in sets]
    arms = {
        **sparse_arms(weight, sets, slabs, hidden, quantised, softcap, triton),
        **peers(weight, sets, slabs, hidden, softcap, compile_too),
    }
    return {name: arm for name, arm in arms.items() if any(text in name for text in only)}
