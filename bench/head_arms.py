"""The ways to do the head's whole job, on CPU and GPU alike, and the check of each.

The job: projection, log-probabilities, the ten best with their token ids. Each call of an arm takes
the next of several sets of active ids.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import microspec_kernels as mk
from microspec_kernels import reference

K_BEST = 10
NAMES = {torch.float8_e4m3fn: "fp8", torch.int8: "int8"}


@dataclass(frozen=True)
class Arm:
    # Over the next set of ids, [M, K_BEST]: log-probabilities and token ids, or logits, token ids
    # and the logsumexp to subtract from them.
    call: Callable[[], tuple[Tensor, ...]]
    # What the reference takes for the first set but for hidden and k.
    operands: dict[str, Any]
    # The least that a call has to read: the rows it works on, with their scales.
    bytes: int


def make_weight(vocab_size: int, dim: int, device: str = "cpu") -> Tensor:
    """Random bf16 rows of about unit scale over sqrt(dim), made without an fp32 copy."""
    weight = torch.empty(vocab_size, dim, dtype=torch.bfloat16, device=device)
    for chunk in weight.split(8192):
        chunk.copy_(torch.randn(chunk.shape, device=device) * dim**-0.5)
    return weight


def id_sets(vocab_size: int, capacity: int, count: int, device: str = "cpu") -> list[Tensor]:
    """Random active ids from all over the vocabulary; sets share none while there are enough."""
    ids: list[Tensor] = []
    while len(ids) < count:
        ids += (
            torch.randperm(vocab_size, device=device)
            .int()
            .split(capacity)[: vocab_size // capacity]
        )
    return [own.clone() for own in ids[:count]]


def arms_for(
    weight: Tensor, sets: list[Tensor], hidden: Tensor, quantised: Sequence[torch.dtype] = ()
) -> dict[str, Arm]:
    slabs = [weight.index_select(0, ids) for ids in sets]

    def best(logits: Tensor, ids: Tensor | None) -> tuple[Tensor, Tensor]:
        value, index = logits.log_softmax(-1).topk(K_BEST)
        return value, index if ids is None else ids[index]

    def sparse(*operands: Tensor, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
        return mk.sparse_head(hidden, *operands, K_BEST, **options)

    def in_turn(call: Callable[[int], tuple[Tensor, ...]]) -> Callable[[], Any]:
        turn = itertools.cycle(range(len(sets)))
        return lambda: call(next(turn))

    rows = slabs[0].nbytes
    indexed = {"weight": weight, "active_ids": sets[0]}
    packed = {"weight": slabs[0], "active_ids": sets[0], "packed": True}
    everything = torch.arange(weight.size(0), dtype=torch.int32, device=weight.device)
    arms = {
        "sparse_head indexed": Arm(in_turn(lambda i: sparse(weight, sets[i])), indexed, rows),
        "sparse_head packed": Arm(
            in_turn(lambda i: sparse(slabs[i], sets[i], packed=True)), packed, rows
        ),
    }
    for dtype in quantised:
        arms[f"sparse_head packed {NAMES[dtype]}"] = _quantised(dtype, slabs, sets, sparse, in_turn)
    return {
        **arms,
        "index_select + linear + log_softmax + topk": Arm(
            in_turn(lambda i: best(F.linear(hidden, weight.index_select(0, sets[i])), sets[i])),
            indexed,
            rows,
        ),
        "linear on a packed slab + log_softmax + topk": Arm(
            in_turn(lambda i: best(F.linear(hidden, slabs[i]), sets[i])), packed, rows
        ),
        "dense linear + log_softmax + topk": Arm(
            lambda: best(F.linear(hidden, weight), None),
            {"weight": weight, "active_ids": everything},
            weight.nbytes,
        ),
    }


def _quantised(
    dtype: torch.dtype, slabs: list[Tensor], sets: list[Tensor], sparse: Any, in_turn: Any
) -> Arm:
    pairs = [reference.quantise_rows(slab, dtype) for slab in slabs]
    first = {"weight": pairs[0][0], "active_ids": sets[0], "packed": True}
    return Arm(
        in_turn(lambda i: sparse(pairs[i][0], sets[i], packed=True, weight_scale=pairs[i][1])),
        {**first, "weight_scale": pairs[0][1]},
        pairs[0][0].nbytes + pairs[0][1].nbytes,
    )


def validate(arms: dict[str, Arm], hidden: Tensor, allowed: float = 1e-5) -> None:
    """Each arm's first call against fp64."""
    for name, arm in arms.items():
        check(name, arm, hidden, arm.call(), allowed)


def check(
    name: str, arm: Arm, hidden: Tensor, result: tuple[Tensor, ...], allowed: float = 1e-5
) -> None:
    """A result of the first set against fp64; one in bf16 may be off by its own rounding.

    Ids may differ from the exact order only among log-probabilities that close.
    """
    options = {"k": K_BEST + 6, "dtype": torch.float64}
    logits, tokens, logsumexp = reference.sparse_head(hidden[:1], **arm.operands, **options)
    exact = (logits - logsumexp[:, None])[0].tolist()
    exact_of = dict(zip(tokens[0].tolist(), exact, strict=True))
    got, got_tokens, *rest = result
    got = got - rest[0][:, None] if rest else got
    rounding = 2**-7 * max(map(abs, exact)) if got.dtype == torch.bfloat16 else allowed
    found = zip(got[0].tolist(), got_tokens[0].tolist(), strict=True)
    for place, (value, token) in enumerate(found):
        assert abs(value - exact[place]) <= rounding, (name, place, value, exact[place])
        if got.dtype != torch.bfloat16:
            assert abs(exact_of[token] - value) <= rounding, (name, place, token)
