# SPDX-License-Identifier: Apache-2.0
"""Continue a prompt with a target and a draft, and report the cost of the draft's head.

--compare runs the target alone and then every head on the same prompt. It compares their outputs
with the target's output.
"""

import argparse
import sys
from dataclasses import replace
from typing import Any

from microspec_kernels._optional import require

from .generate_options import HEADS, add_arguments, check
from .table import table

__all__ = ["add_arguments", "run"]


def run(args: argparse.Namespace) -> dict[str, Any]:
    import torch

    from microspec_kernels.speculative import load_draft, load_target

    from .tokenizers import load_tokenizer

    device, frequent_tokens = check(args)
    _quiet()
    heads = (
        [h for h in HEADS if h != "static" or frequent_tokens is not None]
        if args.compare
        else [args.head]
    )
    dtype = None if args.dtype is None else getattr(torch, args.dtype)
    tokenizer = load_tokenizer(args.tokenizer or args.target)
    prompt = tokenizer.encode(args.prompt)
    target = load_target(args.target, dtype=dtype, device=device)
    _check_ids(args, prompt, frequent_tokens, target.vocab_size)
    draft = None if heads == ["none"] else load_draft(args.draft, target)
    input_ids = torch.tensor(prompt, device=target.device)
    policy = _policy(args, frequent_tokens)

    def generated(head: str, new: int, timed: bool) -> Any:
        options = input_ids, frequent_tokens, policy
        return _generate(args, head, target, draft, *options, new=new, timed=timed)

    # Warm up each head with a short run: the first calls pay for caches and allocations.
    for head in heads if args.compare else []:
        generated(head, 8, False)
    # On a GPU the clock slows a step down, so another run is timed.
    on_cpu = target.device.type == "cpu"
    runs = {head: generated(head, args.max_new_tokens, on_cpu) for head in heads}
    timed = runs if on_cpu else {head: generated(head, args.max_new_tokens, True) for head in heads}
    # A chain's text has the target's distribution, but equals the target's text only if greedy.
    comparable = "none" in runs and not (args.chain and args.temperature)
    target_tokens = runs["none"].tokens.tolist() if comparable else None
    text = tokenizer.decode(next(iter(runs.values())).tokens.tolist())
    print(text, end="\n\n")
    rows = [
        _row(head, result, timed[head].stats.seconds, args.depth, target_tokens)
        for head, result in runs.items()
    ]
    print(table(rows))
    if args.compare:
        shares = [_shares(head, timed[head].stats.seconds) for head in heads if head != "none"]
        print(f"\nwhere the time goes\n\n{table(shares)}")
    if args.compare and target_tokens is not None:
        same = all(row["identical"] == "yes" for row in rows)
        print("\nevery output " + ("equals" if same else "DOES NOT EQUAL") + " the target's own")
    figures = {head: result.stats.as_dict() for head, result in runs.items()}
    tokens = {head: result.tokens.tolist() for head, result in runs.items()}
    return {"prompt": args.prompt, "text": text, "rows": rows, "stats": figures, "tokens": tokens}


def _quiet() -> None:
    """Keep transformers from writing warnings to stderr, and progress bars if it is no terminal.

    `load_target` itself reports missing weights.
    """
    logging = require("transformers", "speculative").utils.logging
    logging.set_verbosity_error()
    if not sys.stderr.isatty():
        logging.disable_progress_bar()


def _check_ids(
    args: argparse.Namespace, prompt: list[int], frequent_tokens: Any, vocab_size: int
) -> None:
    """Check that all ids and the sparse head's capacity fit the target's vocabulary.

    Raises:
        ValueError: an empty prompt, an id outside the vocabulary, or a --capacity above its size.
    """
    if not prompt:
        raise ValueError("--prompt: expected at least one token, got none")
    of_tokenizer = f"--tokenizer {args.tokenizer or args.target}"
    listed = [] if frequent_tokens is None else frequent_tokens.tolist()
    for name, ids in ((of_tokenizer, prompt), (args.frequent_tokens, listed)):
        if ids and max(ids) >= vocab_size:
            expected = f"ids below {vocab_size}, the target's vocabulary"
            raise ValueError(f"{name}: expected {expected}, got {max(ids)}")
    if args.given_capacity and args.capacity > vocab_size:
        expected = f"at most the {vocab_size} tokens of the target's vocabulary"
        raise ValueError(f"--capacity: expected {expected}, got {args.capacity}")


def _policy(args: argparse.Namespace, frequent_tokens: Any) -> Any:
    """Make the default policy, with the pinned tokens of --pin and empty slots with --no-fill."""
    from microspec_kernels.policy import default

    tokens = () if frequent_tokens is None else frequent_tokens
    return replace(default(() if args.no_fill else tokens), pinned=tokens[: args.pin or 0])


def _generate(
    args: argparse.Namespace,
    head: str,
    target: Any,
    draft: Any,
    input_ids: Any,
    frequent_tokens: Any,
    policy: Any,
    new: int,
    timed: bool,
) -> Any:
    """Generate `new` tokens with the head of that name; "none" is the target alone."""
    from microspec_kernels.speculative import Sampling, generate
    from microspec_kernels.speculative.alone import target_alone

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
        tree_width=args.tree_width,
        tree_size=args.tree_size,
        capacity=args.static_capacity if head == "static" else args.capacity,
        frequent_tokens=frequent_tokens,
        policy=policy,
        sampling=sampling,
        chain=args.chain,
        timed=timed,
    )


def _shares(head: str, seconds: dict[str, float]) -> dict[str, Any]:
    """Make one line of the shares of the parts in the total time of a timed run."""
    parts = {
        "prefill": "prefill", "draft layer": "draft_layer", "draft head": "head", "tree": "tree",
        "verify": "verify", "vocabulary": "vocabulary",
    }  # fmt: skip
    shares = {name: seconds[part] / seconds["total"] for name, part in parts.items()}
    shares["between"] = 1 - sum(shares.values())
    return {"head": head, **{name: f"{share:.1%}" for name, share in shares.items()}}


def _row(
    head: str,
    result: Any,
    seconds: dict[str, float],
    depth: int,
    target_tokens: list[int] | None,
) -> dict[str, Any]:
    """Make one line of the table; `seconds`: of the parts, by a timed run.

    A draft step is one level of the tree, with one head call.
    """
    stats = result.stats
    drafted = stats.steps * depth if head != "none" else 0
    draft = sum(seconds.get(part, 0.0) for part in ("draft_layer", "head", "vocabulary", "tree"))
    return {
        "head": head,
        "tokens/s": len(result.tokens) / stats.seconds["total"],
        "τ": stats.tau if drafted else 1.0,
        "active": round(stats.active_mean) if drafted else None,
        "coverage": stats.coverage if drafted else None,
        "head ms": seconds["head"] / drafted * 1e3 if drafted else None,
        "draft ms": draft / drafted * 1e3 if drafted else None,
        "identical": "-"
        if target_tokens is None
        else "yes"
        if result.tokens.tolist() == target_tokens
        else "no",
    }
