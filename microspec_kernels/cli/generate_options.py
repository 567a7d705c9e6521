# SPDX-License-Identifier: Apache-2.0
"""Define the options of `generate`, and check them before a model is loaded."""

import argparse
from pathlib import Path
from typing import Any

from microspec_kernels._checks import MAX_TOP_K
from microspec_kernels.policy import CAPACITY

from . import sources
from .arguments import DTYPES, check_used, output, positive, real, usable_device, whole
from .checkpoints import check_folder

HEADS = ("none", "dense", "static", "sparse")
MODES = ("indexed", "packed")
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
    "mode": "indexed",
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
    add("static-capacity", "first tokens of the prior that the static head proposes", type=positive)
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
    sources.add_arguments(parser, prior="the list of --pair, else of the tokenizer")
    parser.add_argument(
        "--learned",
        type=output(),
        metavar="FILE",
        help="keep in this file what --learn learns, and continue from it if it exists",
    )
    add("mode", "how the sparse head reads rows: in place, or packed", choices=MODES)
    parser.add_argument(
        "--timeline",
        type=output(".svg", ".png", ".pdf"),
        metavar="FILE.svg",
        help="draw the parts of the median step of the last head, from one more run",
    )
    parser.add_argument("--dtype", choices=DTYPES, help="default: that of the checkpoint")
    parser.add_argument("--device", help="default: the GPU if there is one")


def check(args: argparse.Namespace) -> tuple[Any, Any]:
    """Check the options as far as possible without a model; fill in defaults and the pair's parts.

    Returns:
        The torch.device, and the token ids of --prior, int64 [n]; None for an order of ids or of
        the tokenizer.

    Raises:
        OSError, ValueError: a wrong option or file. The message names it.
    """
    device = usable_device(args.device)
    _check_used(args)
    _fill_from_pair(args)
    tokens = sources.load_prior(args.prior)
    args.given_capacity = args.capacity is not None
    args.given_static_capacity = args.static_capacity is not None
    for name, default in DEFAULTS.items():
        if getattr(args, name) is None:
            setattr(args, name, default)
    if tokens is not None:
        check_count(args, len(tokens))
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
        ("timeline", drafts, a_draft),
        ("tree_width", drafts and not args.chain, a_tree),
        ("tree_size", drafts and not args.chain, a_tree),
        ("capacity", sparse, "--head sparse or --compare"),
        *(
            (name, sparse, "--head sparse or --compare")
            for name in ("pin", "no_fill", "lists", "learned", "mode")
        ),
        ("learned", args.learn, "--learn"),
        ("static_capacity", static, "--head static or --compare"),
        ("prior", static or sparse, "--head sparse, static or --compare"),
        ("top_p", args.temperature > 0, "a --temperature above 0"),
        ("sampled_top_k", args.temperature > 0, "a --temperature above 0"),
        ("seed", args.temperature > 0, "a --temperature above 0"),
    )
    sources.check(args)
    used = static or args.pin is not None or not args.no_fill
    check_used(args, ("prior", used, "a --pin beside --no-fill"))


def _fill_from_pair(args: argparse.Namespace) -> None:
    if args.pair is not None:
        if not args.pair.is_dir():
            raise FileNotFoundError(f"--pair: no folder {args.pair}")
        parts = (args.target, args.draft, args.prior, args.tokenizer)
        check_used(args, ("pair", None in parts, "a part that no other option names"))
        args.target = args.target or str(args.pair / "target")
        args.draft = args.draft or str(args.pair / "draft")
        args.prior = args.prior or str(args.pair / "frequent_tokens.npy")
        args.tokenizer = args.tokenizer or "tekken"
    if not args.target:
        raise ValueError("--target: expected a model here or in a --pair, got none")
    if not args.draft and (args.compare or args.head != "none"):
        raise ValueError("--draft: expected one, or --head none for the target alone, got none")


def check_count(args: argparse.Namespace, count: int) -> None:
    """Check --pin and --static-capacity against the `count` tokens of --prior.

    Raises:
        ValueError: an option above it.
    """
    sources.check_pin(args, count, args.capacity)
    if args.given_static_capacity and args.static_capacity > count:
        expected = f"at most the {count} tokens of --prior"
        raise ValueError(f"--static-capacity: expected {expected}, got {args.static_capacity}")


def _text(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise argparse.ArgumentTypeError("expected UTF-8 text, got other bytes") from error
    return text
