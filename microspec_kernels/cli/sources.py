"""The parts of the vocabulary policy that `replay`'s options describe."""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from microspec_kernels import policy, replay
from microspec_kernels._npy import integers
from microspec_kernels._token_ids import read_token_ids
from microspec_kernels.policy import ContextSuccessors, Source

TEXT: dict[str, Callable[[int | None], Source]] = {
    "prompt": policy.prompt,
    "generated": policy.generated,
}
TABLES = ("variants", "successors", "neighbours")
CONTEXT = {"context1": 1, "context2": 2}
NAMES = (*TEXT, *TABLES, *CONTEXT)
AHEAD = 5  # as deep as a draft looks


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--source",
        action="append",
        type=_name_and_budget,
        metavar="NAME[=BUDGET]",
        help=f"one of {', '.join(NAMES)}, with at most BUDGET tokens a pass; repeat it, the newest "
        "tokens of a row last (default: prompt, generated, and every table that is given)",
    )
    parser.add_argument(
        "--variants",
        type=Path,
        metavar="TOKENIZER",
        help="case and space variants, of a tokenizer.json or an .npy int32 [V, c]",
    )
    for name in TABLES[1:]:
        parser.add_argument(
            f"--{name}", type=Path, metavar="FILE", help="their table, an .npy int32 [V, c]"
        )
    parser.add_argument("--frequency-rank", type=Path, metavar="FILE", help=".npy of token ids")
    parser.add_argument(
        "--floor", type=int, default=0, metavar="N", help="pin the N most frequent tokens"
    )
    parser.add_argument(
        "--fill",
        action="store_true",
        help="begin with the most frequent tokens, as many as there is room for; they may leave",
    )


def load_tables(args: argparse.Namespace) -> dict[str, Tensor]:
    """The tables that are given, by their source's name: int32 [V, c].

    Raises:
        OSError: no such file, or not readable.
        ValueError: not such a table, or one that no --source uses.
    """
    tables = {n: _table(n, getattr(args, n)) for n in TABLES if getattr(args, n)}
    if args.source and (unused := tables.keys() - {name for name, _ in args.source}):
        name = min(unused)
        raise ValueError(f"--{name}: expected --source {name} to use it, got none")
    return tables


def named_sources(
    args: argparse.Namespace, tables: dict[str, Tensor], vocab_size: int
) -> tuple[Source, ...]:
    """What --source says, or else the text and every table.

    Raises:
        ValueError: a table is missing, or has no row for some token below `vocab_size`.
    """
    sources: list[Source] = []
    for name, budget in args.source or [(name, None) for name in (*TEXT, *tables)]:
        if name in TEXT:
            sources.append(TEXT[name](budget))
        elif name in CONTEXT:
            ahead = budget or AHEAD
            sources += ContextSuccessors(vocab_size, order=CONTEXT[name], ahead=ahead).sources
        elif name not in tables:
            raise ValueError(f"--source {name}: expected its table, --{name} FILE, got none")
        elif len(tables[name]) < vocab_size:
            rows = len(tables[name])
            raise ValueError(f"--{name}: expected at least {vocab_size} rows, got {rows}")
        else:
            texts = (text(None) for text in TEXT.values())
            sources += [policy.expanded(text, tables[name], name, budget) for text in texts]
    return tuple(sources)


def load_ranked(args: argparse.Namespace) -> tuple[list[int], list[int]]:
    """The tokens that --floor pins, and those that --fill begins with.

    Raises:
        OSError, ValueError: no rank, not a rank, or one too short.
    """
    if args.floor < 0:
        raise ValueError(f"--floor: expected at least 0, got {args.floor}")
    if not args.floor and not args.fill:
        return [], []
    if args.frequency_rank is None:
        name = "--floor" if args.floor else "--fill"
        raise ValueError(f"{name}: expected a --frequency-rank, got none")
    ranked, least = read_token_ids(args.frequency_rank).tolist(), min(args.capacity)
    if args.floor > min(len(ranked), least):
        raise ValueError(
            f"--floor: {args.floor} tokens asked for, of {len(ranked)} ranked and a capacity of "
            f"{least}"
        )
    return ranked[: args.floor], ranked if args.fill else []


def _table(name: str, path: Path) -> Tensor:
    if name == "variants" and path.suffix != ".npy":
        return policy.variants(replay.token_texts(replay.load_tokenizer(path)))
    return torch.from_numpy(integers(path, 2).astype("int32"))


def _name_and_budget(text: str) -> tuple[str, int | None]:
    name, equals, budget = text.partition("=")
    if name not in NAMES:
        raise argparse.ArgumentTypeError(f"expected one of {', '.join(NAMES)}, got {name}")
    if equals and not (budget.isdecimal() and int(budget) >= 1):
        raise argparse.ArgumentTypeError(f"{name}: expected at least 1 token, got {budget}")
    return name, int(budget) if equals else None
