# SPDX-License-Identifier: Apache-2.0
"""The command ``microspec``, with a module for each subcommand.

Each module has ``add_arguments`` and ``run``. ``run`` prints a readable report and returns the same
figures as data, which ``--json FILE`` writes.
"""

import argparse
import json
import sys

import torch

from microspec_kernels._version import __version__

from . import bench, generate, info, replay
from .arguments import Parser, output

COMMANDS = {"generate": generate, "replay": replay, "bench": bench, "info": info}


def main(argv: list[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0; or 2 after an error of arguments, files or memory, printed as one line on stderr; or 1 if
        the reader of stdout has closed the pipe.

    Raises:
        SystemExit: argparse ends the program.
        Exception: any other exception is a bug in the program.
    """
    args = _parser().parse_args(argv)
    try:
        data = COMMANDS[args.command].run(args)
        if args.json is not None:
            args.json.write_text(json.dumps(data, indent=2) + "\n")
    except BrokenPipeError:  # a reader such as `head` has closed the pipe
        sys.stderr.close()
        return 1
    except (OSError, ValueError, ImportError, MemoryError, torch.OutOfMemoryError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        print(f"microspec {args.command}: {reason}", file=sys.stderr)
        return 2
    return 0


def _parser() -> Parser:
    parser = Parser(prog="microspec", description="Active-vocabulary drafting")
    parser.add_argument("--version", action="version", version=f"microspec {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        summary = (module.__doc__ or "").splitlines()[0]
        command = commands.add_parser(
            name,
            help=summary,
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(command)
        command.add_argument(
            "--json", type=output(), metavar="FILE", help="write the figures to a JSON file"
        )
    return parser
