# SPDX-License-Identifier: Apache-2.0
"""Time the sparse head on this machine against a dense head and a plain row selection.

Each arm computes the top k and their log-probabilities. "select" is the version in a few lines of
PyTorch: index_select of the active rows, then a matrix product. Before any timing, the command
compares the results of the sparse arms with those of "select".
"""

import argparse
from collections.abc import Callable
from typing import Any

from microspec_kernels._checks import MAX_TOP_K
from microspec_kernels.device import cpu_name
from microspec_kernels.policy import CAPACITY

from .arguments import DTYPES, LARGEST_VOCAB, check_memory, positive, usable_device, whole
from .shapes import SHAPES
from .table import table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    for name, number, default, text in (
        (
            "vocab-size",
            whole(1, LARGEST_VOCAB),
            SHAPES["Llama-3.1-8B"][0],
            "V, rows of the LM head",
        ),
        ("dim", positive, 1024, "D, hidden size"),
        ("capacity", positive, CAPACITY, "K, active tokens"),
        ("k", whole(1, MAX_TOP_K), 10, "k, candidates per row"),
        ("num-tokens", positive, 10, "M, number of rows of hidden"),
        ("rounds", whole(15), 31, "measured calls of each arm, at least 15"),
    ):
        help_text = f"{text} (default {default})"
        parser.add_argument(f"--{name}", type=number, default=default, help=help_text)
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--device", default=None, help="default: the GPU if there is one")


def run(args: argparse.Namespace) -> dict[str, Any]:
    import torch

    from microspec_kernels.timing import time_arms

    for name, most in (("k", "capacity"), ("capacity", "vocab_size")):
        value, limit = getattr(args, name), getattr(args, most)
        if value > limit:
            of = most.replace("_", "-")
            raise ValueError(f"--{name}: expected at most the --{of} of {limit}, got {value}")
    device, dtype = usable_device(args.device), getattr(torch, args.dtype)
    # The LM head, two copies of its active rows, hidden, and the dense head's logits (in dtype, and
    # twice in fp32).
    elements = (args.vocab_size + 2 * args.capacity + args.num_tokens) * args.dim
    logits = args.num_tokens * args.vocab_size * (dtype.itemsize + 8)
    size = elements * dtype.itemsize + logits
    check_memory("--vocab-size, --dim, --num-tokens", size, device)
    with torch.inference_mode():
        weight, hidden = operands(args.vocab_size, args.dim, args.num_tokens, device, dtype)
        arms = arms_for(weight, hidden, args.capacity, args.k)
        validate(arms, 1e-3 if args.dtype == "float32" else 0.05)
        times = time_arms(arms, rounds=args.rounds)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
    print(f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(
        f"V={args.vocab_size} D={args.dim} K={args.capacity} M={args.num_tokens} k={args.k} "
        f"{args.dtype}"
    )
    dense = times["dense"].p50
    rows = [
        {
            "head": arm,
            "p20 ms": took.p20 * 1e3,
            "p50 ms": took.p50 * 1e3,
            "p80 ms": took.p80 * 1e3,
            "speedup": dense / took.p50,
        }
        for arm, took in times.items()
    ]
    print(table(rows))
    settings = {key: value for key, value in vars(args).items() if key not in ("json", "command")}
    return {
        **settings,
        "device": str(device),
        "device_name": name,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "seconds": {arm: took._asdict() for arm, took in times.items()},
    }


def operands(
    vocab_size: int, dim: int, num_tokens: int, device: Any, dtype: Any
) -> tuple[Any, Any]:
    """Make a random LM head [V, D] and hidden [M, D], the same in every run."""
    import torch

    random = torch.Generator(device).manual_seed(0)
    weight = torch.randn(vocab_size, dim, generator=random, device=device, dtype=dtype)
    weight /= dim**0.5
    return weight, torch.randn(num_tokens, dim, generator=random, device=device, dtype=dtype)


def arms_for(weight: Any, hidden: Any, capacity: int, k: int) -> dict[str, Callable[[], Any]]:
    """Make the functions to time, by name, over `capacity` random active tokens."""
    import torch
    import torch.nn.functional as F

    from microspec_kernels.head import SparseHead
    from microspec_kernels.vocab import ActiveVocab

    vocab = ActiveVocab(weight.size(0), capacity, device=weight.device)
    random = torch.Generator(weight.device).manual_seed(0)
    ids = torch.randperm(weight.size(0), generator=random, device=weight.device)
    vocab.update(ids[:capacity])
    active = vocab.ids[0].long()
    indexed = SparseHead(weight, vocab, mode="indexed")
    packed = SparseHead(weight, vocab, mode="packed")

    def dense() -> Any:
        return F.linear(hidden, weight).float().log_softmax(-1).topk(k)

    def select() -> Any:
        logits = F.linear(hidden, weight.index_select(0, active)).float()
        best = logits.log_softmax(-1).topk(k)
        return best.values, active[best.indices]

    def sparse(head: SparseHead) -> Any:
        logits, tokens, logsumexp = head(hidden, k)
        return logits - logsumexp[:, None], tokens

    return {
        "dense": dense,
        "select": select,
        "sparse indexed": lambda: sparse(indexed),
        "sparse packed": lambda: sparse(packed),
    }


def validate(arms: dict[str, Callable[[], Any]], tolerance: float) -> None:
    """Check that the sparse arms match the log-probabilities of "select" within `tolerance`.

    Raises:
        ValueError: an arm differs by more. The message names it.
    """
    import torch

    expected, _ = arms["select"]()
    for name in ("sparse indexed", "sparse packed"):
        found, tokens = arms[name]()
        if (tokens < 0).any() or not torch.allclose(found, expected, atol=tolerance, rtol=0):
            raise ValueError(f"{name}: its results are not those of index_select")
