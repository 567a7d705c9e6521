# SPDX-License-Identifier: Apache-2.0
"""Define the options of `generate`, and check them before a model is loaded."""

import argparse
from pathlib import Path
from typing import Any

from microspec_kernels._token_ids import read_token_ids

from .arguments import DTYPES, check_used, positive, real, usable_device, whole
from .checkpoints import check_folder

HEADS = ("none", "dense", "static", "sparse")
# Argparse has no defaults for options that only some calls use: check_used needs to know whether
# an option was set.
DEFAULTS: dict[str, Any] = {
    "head": "sparse",
    "capacity": 3072,
    "static_capacity": 32768,
    "depth": 6,
    "top_k": 10,
    "tree_size": 60,
    "top_p": 1.0,
    "sampled_top_k": 0,
    "seed": 0,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    def add(name: str, text: str, **options: Any) -> None:
        default = DEFAULTS[name.replace("-", "_")]
        parser.add_argument(f"--{name}", help=f"{text} (default {default})", **options)

    parser.add_argument("--prompt", required=True, type=_text)
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
    add("head", "none: the target alone", choices=HEADS)
    parser.add_argument("--compare", action="store_true", help="run every head")
    parser.add_argument("--max-new-tokens", type=positive, default=128)
    add("capacity", "of the sparse head", type=positive)
    add("static-capacity", "of the static head", type=positive)
    add("depth", "levels of the draft's tree, or tokens of its chain", type=positive)
    add("top-k", "candidates at each level of the tree", type=whole(1, 128))
    add("tree-size", "nodes that the target verifies", type=positive)
    parser.add_argument(
        "--temperature",
        type=real("a number of at least 0", lambda value: value >= 0),
        default=0.0,
        help="0: the likeliest token",
    )
    share = real("a number above 0 and at most 1", lambda value: 0 < value <= 1)
    add("top-p", "of the target's probabilities", type=share)
    add("sampled-top-k", "of the target's likeliest tokens; 0: all", type=whole(0))
    add("seed", "equal seeds give equal texts", type=whole(0, 2**64 - 1))
    parser.add_argument(
        "--chain",
        action="store_true",
        help="draft a chain of --depth drawn tokens, no tree: the target's law, another text",
    )
    parser.add_argument(
        "--floor", type=whole(0), help="pin the N most frequent tokens, and begin with no others"
    )
    parser.add_argument(
        "--frequency-rank",
        type=Path,
        metavar="FILE",
        help="token ids by falling frequency (.npy, .pt or .json)",
    )
    parser.add_argument("--dtype", choices=DTYPES, help="default: the checkpoint's")
    parser.add_argument("--device", help="default: the GPU if there is one")


def check(args: argparse.Namespace) -> tuple[Any, list[int] | None]:
    """Check the options as far as possible without a model; fill in defaults and the pair's parts.

    Returns:
        The torch.device, and the token ids of --frequency-rank or None.

    Raises:
        OSError, ValueError: a wrong option or file. The message names it.
    """
    device = usable_device(args.device)
    _check_used(args)
    _fill_from_pair(args)
    ranked = None
    if args.frequency_rank is not None:
        ranked = read_token_ids(args.frequency_rank).tolist()
        if not ranked:
            raise ValueError(f"{args.frequency_rank}: expected at least one token id, got none")
    _check_ranked(args, ranked)
    args.given_capacity = args.capacity is not None
    for name, default in DEFAULTS.items():
        if getattr(args, name) is None:
            setattr(args, name, default)
    check_folder("--target", args.target)
    if args.compare or args.head != "none":
        check_folder("--draft", args.draft)
    if args.tokenizer not in (None, "tekken"):
        check_folder("--tokenizer", args.tokenizer, weights=False)
    return device, ranked


def _check_used(args: argparse.Namespace) -> None:
    head = args.head or DEFAULTS["head"]
    drafts, sparse = args.compare or head != "none", args.compare or head == "sparse"
    static = args.compare or head == "static"
    a_draft, a_tree = "a head other than none", "a draft's tree (a head, and no --chain)"
    filled = args.floor is None or args.floor > 0
    check_used(
        args,
        ("head", not args.compare, "a call without --compare"),
        ("draft", drafts, a_draft),
        ("depth", drafts, a_draft),
        ("chain", drafts, a_draft),
        ("top_k", drafts and not args.chain, a_tree),
        ("tree_size", drafts and not args.chain, a_tree),
        ("capacity", sparse, "--head sparse or --compare"),
        ("floor", sparse, "--head sparse or --compare"),
        ("static_capacity", static, "--head static or --compare"),
        ("frequency_rank", static or (sparse and filled), "--head sparse, static or --compare"),
        ("top_p", args.temperature > 0, "a --temperature above 0"),
        ("sampled_top_k", args.temperature > 0, "a --temperature above 0"),
        ("seed", args.temperature > 0, "a --temperature above 0"),
    )


def _fill_from_pair(args: argparse.Namespace) -> None:
    if args.pair is not None:
        if not args.pair.is_dir():
            raise FileNotFoundError(f"--pair: no folder {args.pair}")
        parts = (args.target, args.draft, args.frequency_rank, args.tokenizer)
        check_used(args, ("pair", None in parts, "a part that no other option names"))
        args.target = args.target or str(args.pair / "target")
        args.draft = args.draft or str(args.pair / "draft")
        args.frequency_rank = args.frequency_rank or args.pair / "frequency_rank.npy"
        args.tokenizer = args.tokenizer or "tekken"
    if not args.target:
        raise ValueError("--target: expected a model here or in a --pair, got none")
    if not args.draft and (args.compare or args.head != "none"):
        raise ValueError("--draft: expected one, or --head none for the target alone, got none")


def _check_ranked(args: argparse.Namespace, ranked: list[int] | None) -> None:
    """Check that options that need --frequency-rank have it, and that it has enough tokens."""
    capacity = args.capacity or DEFAULTS["capacity"]
    needs = {"--head static": args.head == "static", "--floor": bool(args.floor)}
    needs["--static-capacity"] = args.static_capacity is not None
    for name in (name for name, needed in needs.items() if needed and ranked is None):
        raise ValueError(f"{name}: expected a --frequency-rank, got none")
    count = len(ranked or [])
    expected = f"at most the {count} tokens of {args.frequency_rank}"
    if args.floor and args.floor > min(count, capacity):
        expected += f" and the capacity of {capacity}"
        raise ValueError(f"--floor: expected {expected}, got {args.floor}")
    if args.static_capacity is not None and args.static_capacity > count:
        raise ValueError(f"--static-capacity: expected {expected}, got {args.static_capacity}")


def _text(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise argparse.ArgumentTypeError("expected UTF-8 text, got other bytes") from error
    return text
