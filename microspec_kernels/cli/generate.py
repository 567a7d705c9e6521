"""Continue a prompt with a target and a draft, and say what the draft's head cost.

--compare runs the target alone and then every head on the same prompt, and compares their outputs
with the target's own.
"""

import argparse
from pathlib import Path
from typing import Any

from microspec_kernels._token_ids import read_token_ids

from .common import DTYPES, positive, table, usable_device

HEADS = ("none", "dense", "static", "sparse")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--target", help="folder or hub name of a causal LM")
    parser.add_argument("--draft", help="folder or hub name of an EAGLE-1/2 draft or a small LM")
    parser.add_argument(
        "--pair",
        type=Path,
        metavar="FOLDER",
        help="takes target, draft and frequency_rank.npy from FOLDER, and Tekken as the tokenizer",
    )
    parser.add_argument(
        "--tokenizer", help="folder, hub name, or `tekken` for mistral-common's (default: target)"
    )
    parser.add_argument("--head", choices=HEADS, default="sparse", help="none: the target alone")
    parser.add_argument("--compare", action="store_true", help="run every head")
    parser.add_argument("--max-new-tokens", type=positive, default=128)
    parser.add_argument("--capacity", type=positive, default=3072, help="of the sparse head")
    parser.add_argument("--static-capacity", type=positive, default=32768, help="of the static")
    parser.add_argument("--depth", type=positive, default=6)
    parser.add_argument("--top-k", type=positive, default=10)
    parser.add_argument("--tree-size", type=positive, default=60)
    parser.add_argument("--temperature", type=float, default=0.0, help="0: the likeliest token")
    parser.add_argument("--top-p", type=float, default=1.0, help="of the target's probabilities")
    parser.add_argument("--sampled-top-k", type=int, default=0, help="of the target's; 0: all")
    parser.add_argument("--seed", type=int, default=0, help="equal seeds give equal texts")
    parser.add_argument(
        "--chain",
        action="store_true",
        help="draft a chain of --depth drawn tokens, no tree: the target's law, another text",
    )
    parser.add_argument(
        "--floor", type=int, help="pin the N most frequent tokens, and begin with no others"
    )
    parser.add_argument("--frequency-rank", type=Path, metavar="FILE", help=".npy of token ids")
    parser.add_argument("--dtype", choices=DTYPES, help="default: the checkpoint's")
    parser.add_argument("--device", help="default: the GPU if there is one")


def run(args: argparse.Namespace) -> dict[str, Any]:
    import torch

    from microspec_kernels.speculative import load_draft, load_target

    from .text import load_tokenizer

    _fill_from_pair(args)
    rank = args.frequency_rank
    ranked = None if rank is None else read_token_ids(rank).tolist()
    policy = _policy(args.floor, ranked)
    heads = [h for h in HEADS if h != "static" or ranked] if args.compare else [args.head]
    dtype = None if args.dtype is None else getattr(torch, args.dtype)
    tokenizer = load_tokenizer(args.tokenizer or args.target)
    target = load_target(args.target, dtype=dtype, device=usable_device(args.device))
    draft = None if heads == ["none"] else load_draft(args.draft, target)
    input_ids = torch.tensor(tokenizer.encode(args.prompt), device=target.device)
    frequency = None if ranked is None else torch.tensor(ranked, device=target.device)

    # One short run each before any is timed: the first calls pay for caches and allocations.
    for head in heads if args.compare else []:
        _generate(args, head, target, draft, input_ids, frequency, policy, new=8)
    runs = {
        head: _generate(
            args, head, target, draft, input_ids, frequency, policy, args.max_new_tokens
        )
        for head in heads
    }
    # A chain's text follows the law of the target's, and is that text only where all is certain.
    comparable = "none" in runs and not (args.chain and args.temperature)
    own = runs["none"].tokens.tolist() if comparable else None
    text = tokenizer.decode(next(iter(runs.values())).tokens.tolist())
    print(text, end="\n\n")
    rows = [_row(head, result, args.depth, own) for head, result in runs.items()]
    print(table(rows))
    if args.compare and own is not None:
        same = all(row["identical"] == "yes" for row in rows)
        print("\nevery output " + ("equals" if same else "DOES NOT EQUAL") + " the target's own")
    figures = {head: result.stats.as_dict() for head, result in runs.items()}
    tokens = {head: result.tokens.tolist() for head, result in runs.items()}
    return {"prompt": args.prompt, "text": text, "rows": rows, "stats": figures, "tokens": tokens}


def _fill_from_pair(args: argparse.Namespace) -> None:
    if args.pair is not None:
        if not args.pair.is_dir():
            raise FileNotFoundError(f"--pair: no folder {args.pair}")
        args.target = args.target or str(args.pair / "target")
        args.draft = args.draft or str(args.pair / "draft")
        args.frequency_rank = args.frequency_rank or args.pair / "frequency_rank.npy"
        args.tokenizer = args.tokenizer or "tekken"
    if args.target is None:
        raise ValueError("give a --target, or a --pair")
    if args.draft is None and (args.compare or args.head != "none"):
        raise ValueError("give a --draft, or --head none for the target alone")


def _policy(floor: int | None, ranked: list[int] | None) -> Any:
    """The default's sources over a pinned floor; None, which is the default, without one."""
    from microspec_kernels.policy import Policy, default

    if floor is None:
        return None
    if floor < 0 or (floor and ranked is None):
        raise ValueError("--floor takes a number of tokens and a --frequency-rank")
    return Policy(default().sources, pinned=(ranked or [])[:floor])


def _generate(
    args: argparse.Namespace,
    head: str,
    target: Any,
    draft: Any,
    input_ids: Any,
    frequency: Any,
    policy: Any,
    new: int,
) -> Any:
    """A Generation by the head of that name; "none" is the target alone."""
    from microspec_kernels.speculative import Sampling, generate

    from .text import target_alone

    sampling = Sampling(args.temperature, args.top_p, args.sampled_top_k, args.seed)
    if head == "none":
        return target_alone(target, input_ids, new, sampling)
    return generate(
        target,
        draft,
        input_ids,
        new,
        head=head,
        depth=args.depth,
        top_k=args.top_k,
        tree_size=args.tree_size,
        capacity=args.static_capacity if head == "static" else args.capacity,
        frequency=frequency,
        policy=policy,
        sampling=sampling,
        chain=args.chain,
    )


def _row(head: str, result: Any, depth: int, own: list[int] | None) -> dict[str, Any]:
    """One line of the table. A draft step is one level of the tree: one call of the head."""
    stats = result.stats
    seconds = stats.seconds
    drafted = stats.steps * depth if head != "none" else 0
    draft = sum(seconds.get(part, 0.0) for part in ("draft_layer", "head", "vocabulary", "tree"))
    return {
        "head": head,
        "tokens/s": len(result.tokens) / seconds["total"],
        "τ": stats.tau if drafted else 1.0,
        "active": round(stats.active_mean) if drafted else None,
        "coverage": stats.coverage if drafted else None,
        "head ms": seconds["head"] / drafted * 1e3 if drafted else None,
        "draft ms": draft / drafted * 1e3 if drafted else None,
        "identical": "-" if own is None else "yes" if result.tokens.tolist() == own else "no",
    }
