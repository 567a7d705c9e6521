# SPDX-License-Identifier: Apache-2.0
"""Define the options of `generate`, and check them before a model is loaded."""

import argparse
from pathlib import Path
from typing import Any

from microspec_kernels._checks import MAX_TOP_K
from microspec_kernels.policy import CAPACITY

from . import frequent_tokens
from .arguments import DTYPES, check_used, positive, real, usable_device, whole
from .checkpoints import check_folder

HEADS = ("none", "dense", "static", "sparse")
# Argparse has no defaults for options that only some calls use: check_used needs to know whether
# an option was set.
DEFAULTS: dict[str, Any] = {
    "head": "sparse",
    "capacity": CAPACITY,
    "static_capacity": 32768,
    "depth": 6,
    "tree_width": 10,
    "tree_size": 60,
    "top_p": 1.0,
    "sampled_top_k": 0,
    "seed": 0,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    def add(name: str, text: str, **options: Any) -> None:
        default = DEFAULTS[name.replace("-", "_")]
        parser.add_argument(f"--{name}", help=f"{text} (default {default})", **options)

    parser.add_argument("--prompt", required=True, type=_text, help="the text to continue")
    parser.add_argument("--target", help="folder or hub name of a causal LM")
    parser.add_argument(
        "--draft",
        help="folder or hub name of an EAGLE draft, a target with an MTP module, or a small LM",
    )
    parser.add_argument(
        "--pair",
        type=Path,
        metavar="FOLDER",
        help="folder with target, draft and frequent_tokens.npy; the tokenizer is Tekken",
    )
    parser.add_argument(
        "--tokenizer",
        help="folder, hub name, or `tekken` for mistral-common's (default: the target's)",
    )
    add("head", "head of the draft; none runs the target alone", choices=HEADS)
    parser.add_argument("--compare", action="store_true", help="run every head")
    parser.add_argument("--max-new-tokens", type=positive, default=128, help="(default 128)")
    add("capacity", "K, tokens that the sparse head can propose at a time", type=positive)
    add("static-capacity", "tokens that the static head can propose", type=positive)
    add("depth", "levels of the draft's tree, or tokens of its chain", type=positive)
    add(
        "tree-width",
        "nodes that a level of the tree extends, and candidates for each",
        type=whole(1, MAX_TOP_K),
    )
    add("tree-size", "nodes that the target verifies", type=positive)
    parser.add_argument(
        "--temperature",
        type=real("a number of at least 0", lambda value: value >= 0),
        default=0.0,
        help="0 takes the likeliest token (default 0)",
    )
    share = real("a number above 0 and at most 1", lambda value: 0 < value <= 1)
    add("top-p", "draw from the likeliest tokens whose probabilities reach this sum", type=share)
    add("sampled-top-k", "draw from this many of the likeliest tokens; 0: all", type=whole(0))
    add("seed", "seed of the drawn tokens; equal seeds give equal texts", type=whole(0, 2**64 - 1))
    parser.add_argument(
        "--chain",
        action="store_true",
        help="draft a chain of --depth drawn tokens instead of a tree: the text differs, its "
        "distribution is the target's",
    )
    frequent_tokens.add_arguments(parser)
    parser.add_argument("--dtype", choices=DTYPES, help="default: that of the checkpoint")
    parser.add_argument("--device", help="default: the GPU if there is one")


def check(args: argparse.Namespace) -> tuple[Any, Any]:
    """Check the options as far as possible without a model; fill in defaults and the pair's parts.

    Returns:
        The torch.device, and the token ids of --frequent-tokens, int64 [n], or None.

    Raises:
        OSError, ValueError: a wrong option or file. The message names it.
    """
    device = usable_device(args.device)
    _check_used(args)
    _fill_from_pair(args)
    tokens = frequent_tokens.read(args)
    _check_count(args, 0 if tokens is None else len(tokens))
    args.given_capacity = args.capacity is not None
    for name, default in DEFAULTS.items():
        if getattr(args, name) is None:
            setattr(args, name, default)
    check_folder("--target", args.target)
    if args.compare or args.head != "none":
        check_folder("--draft", args.draft)
    if args.tokenizer not in (None, "tekken"):
        check_folder("--tokenizer", args.tokenizer, weights=False)
    return device, tokens


def _check_used(args: argparse.Namespace) -> None:
    head = args.head or DEFAULTS["head"]
    drafts, sparse = args.compare or head != "none", args.compare or head == "sparse"
    static = args.compare or head == "static"
    a_draft, a_tree = "a head other than none", "a draft's tree (a head, and no --chain)"
    check_used(
        args,
        ("head", not args.compare, "a call without --compare"),
        ("draft", drafts, a_draft),
        ("depth", drafts, a_draft),
        ("chain", drafts, a_draft),
        ("tree_width", drafts and not args.chain, a_tree),
        ("tree_size", drafts and not args.chain, a_tree),
        ("capacity", sparse, "--head sparse or --compare"),
        ("pin", sparse, "--head sparse or --compare"),
        ("no_fill", sparse, "--head sparse or --compare"),
        ("static_capacity", static, "--head static or --compare"),
        ("frequent_tokens", static or sparse, "--head sparse, static or --compare"),
        ("top_p", args.temperature > 0, "a --temperature above 0"),
        ("sampled_top_k", args.temperature > 0, "a --temperature above 0"),
        ("seed", args.temperature > 0, "a --temperature above 0"),
    )
    if not static:
        frequent_tokens.check_filled(args)


def _fill_from_pair(args: argparse.Namespace) -> None:
    if args.pair is not None:
        if not args.pair.is_dir():
            raise FileNotFoundError(f"--pair: no folder {args.pair}")
        parts = (args.target, args.draft, args.frequent_tokens, args.tokenizer)
        check_used(args, ("pair", None in parts, "a part that no other option names"))
        args.target = args.target or str(args.pair / "target")
        args.draft = args.draft or str(args.pair / "draft")
        args.frequent_tokens = args.frequent_tokens or args.pair / "frequent_tokens.npy"
        args.tokenizer = args.tokenizer or "tekken"
    if not args.target:
        raise ValueError("--target: expected a model here or in a --pair, got none")
    if not args.draft and (args.compare or args.head != "none"):
        raise ValueError("--draft: expected one, or --head none for the target alone, got none")


def _check_count(args: argparse.Namespace, count: int) -> None:
    """Check that options that need --frequent-tokens have it, and that its `count` is enough."""
    capacity = args.capacity or DEFAULTS["capacity"]
    needs = {
        "--head static": args.head == "static",
        "--pin": args.pin is not None,
        "--no-fill": args.no_fill,
        "--static-capacity": args.static_capacity is not None,
    }
    for name in (name for name, needed in needs.items() if needed and not count):
        raise ValueError(f"{name}: expected a --frequent-tokens, got none")
    frequent_tokens.check_pin(args, count, capacity)
    if args.static_capacity is not None and args.static_capacity > count:
        expected = f"at most the {count} tokens of {args.frequent_tokens}"
        raise ValueError(f"--static-capacity: expected {expected}, got {args.static_capacity}")


def _text(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise argparse.ArgumentTypeError("expected UTF-8 text, got other bytes") from error
    return text
