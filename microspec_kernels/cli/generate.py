# SPDX-License-Identifier: Apache-2.0
"""Continue a prompt with a target and a draft, and report the cost of the draft's head.

--compare runs the target alone and then every head on the same prompt. It compares their outputs
with the target's output.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from microspec_kernels._optional import require

from . import sources
from .generate_options import HEADS, add_arguments, check, check_count
from .table import table

__all__ = ["add_arguments", "run"]


def run(args: argparse.Namespace) -> dict[str, Any]:
    import torch

    from microspec_kernels.speculative import load_draft, load_target

    from .tokenizers import load_tokenizer

    device, prior = check(args)
    _quiet()
    heads = HEADS if args.compare else (args.head,)
    dtype = None if args.dtype is None else getattr(torch, args.dtype)
    tokenizer = load_tokenizer(args.tokenizer or args.target)
    prompt = tokenizer.encode(args.prompt)
    target = load_target(args.target, dtype=dtype, device=device)
    prior = _checked_ids(args, prompt, prior, tokenizer, target.vocab_size)
    draft = None if args.head == "none" else load_draft(args.draft, target)
    input_ids = torch.tensor(prompt, device=target.device)
    start = _start(args, prior, target, draft, tokenizer)

    def generated(head: str, new: int, timed: bool, timeline: Any = None) -> Any:
        options = {"new": new, "timed": timed, "timeline": timeline}
        return _generate(args, head, target, draft, input_ids, start, **options)

    # Warm up each head with a short run: the first calls pay for caches and allocations.
    for head in heads if args.compare else []:
        generated(head, 8, False)
    # On a GPU the clock slows a step down, so another run is timed.
    on_cpu = target.device.type == "cpu"
    runs = {head: generated(head, args.max_new_tokens, on_cpu) for head in heads}
    timed = runs if on_cpu else {head: generated(head, args.max_new_tokens, True) for head in heads}
    if args.timeline is not None:
        _draw(args, heads[-1], target.device, generated)
    if start.file is not None:
        start.file.save()
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


def _checked_ids(
    args: argparse.Namespace, prompt: list[int], prior: Any, tokenizer: Any, vocab_size: int
) -> Any:
    """Check all ids and the options against the target's vocabulary. Returns the prior, int64 [n].

    Raises:
        ValueError: an empty prompt, an id outside the vocabulary, or an option above its size.
    """
    import torch

    from microspec_kernels.policy import prior_of_tokenizer

    if not prompt:
        raise ValueError("--prompt: expected at least one token, got none")
    whose = "target's vocabulary"
    of_tokenizer = f"--tokenizer {args.tokenizer or args.target}"
    sources.check_ids(of_tokenizer, torch.tensor(prompt), vocab_size, whose)
    if prior is None and (args.prior == sources.IDS or args.head == "none"):
        prior = torch.arange(vocab_size)
    elif prior is None:
        prior = _told(prior_of_tokenizer, tokenizer)
        prior = torch.arange(vocab_size) if prior is None else prior[prior < vocab_size]
    sources.check_ids(args.prior or of_tokenizer, prior, vocab_size, whose)
    if args.given_capacity and args.capacity > vocab_size:
        expected = f"at most the {vocab_size} tokens of the target's vocabulary"
        raise ValueError(f"--capacity: expected {expected}, got {args.capacity}")
    check_count(args, len(prior))
    return prior


def _told(function: Callable[[Any], Any], tokenizer: Any) -> Any:
    """Call a function of a tokenizer's tokens; None if it is of a kind that does not tell them."""
    try:
        return function(tokenizer.tokenizer)
    except TypeError:
        return None


class _Start(NamedTuple):
    """What the draft's vocabulary begins with.

    `frequent_tokens` int64 [n], the order before anything is learned. `policy`: of the sparse head.
    `learn`: the lists, or False. `file`: what keeps them. `state`: of the lists before this call.
    """

    frequent_tokens: Any
    policy: Any
    learn: Any
    file: Any
    state: Any


def _start(args: argparse.Namespace, prior: Any, target: Any, draft: Any, tokenizer: Any) -> _Start:
    from microspec_kernels.policy import LearnedFile, default, tokenizer_fingerprint
    from microspec_kernels.speculative import learned_lists

    pinned, frequent_tokens = sources.start_tokens(args, prior)
    policy = replace(default(frequent_tokens), pinned=pinned)
    if not args.learn or draft is None:
        return _Start(prior, policy, False, None, None)
    lists, file = learned_lists(target, draft, prior, num_lists=sources.num_lists(args)), None
    if args.learned is not None:
        fingerprint = _told(tokenizer_fingerprint, tokenizer) or ""
        file = LearnedFile(lists, args.learned, tokenizer=fingerprint)
    return _Start(prior, policy, lists, file, lists.state_dict())


def _generate(
    args: argparse.Namespace,
    head: str,
    target: Any,
    draft: Any,
    input_ids: Any,
    start: _Start,
    new: int,
    timed: bool,
    timeline: Any,
) -> Any:
    """Generate `new` tokens with the head of that name; "none" is the target alone."""
    from microspec_kernels.speculative import Sampling, generate
    from microspec_kernels.speculative.alone import target_alone

    sampling = Sampling(args.temperature, args.top_p, args.sampled_top_k, args.seed)
    if head == "none":
        return target_alone(target, input_ids, new, sampling)
    if start.learn:  # no run learns from another one of the same call
        start.learn.load_state_dict(start.state)
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
        mode=args.mode,
        frequent_tokens=start.frequent_tokens,
        learn=head == "sparse" and start.learn,
        policy=start.policy,
        sampling=sampling,
        chain=args.chain,
        timed=timed,
        timeline=timeline,
    )


def _draw(args: argparse.Namespace, head: str, device: Any, generated: Callable[..., Any]) -> None:
    """Draw the median step of one more run with a head."""
    from microspec_kernels.speculative import Timeline

    from . import timeline

    clock = Timeline(device)
    lengths = generated(head, args.max_new_tokens, False, clock).stats.acceptance_lengths
    if lengths:
        step, count = timeline.median_step(clock.steps(), lengths), max(1, len(lengths) - 1)
        name = Path(args.target).name
        timeline.draw(step, count, f"a step of {name}, {head} head", args.timeline)


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
