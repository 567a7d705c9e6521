# SPDX-License-Identifier: Apache-2.0
"""Every option of every subcommand, with meaningless values, gives one line and exit code 2."""

import argparse

import pytest

from microspec_kernels.cli import COMMANDS, _parser, main

# Every value is valid for these options, or they end the program with success.
TAKE_ANY = {"--prompt", "--help"}
VALUES = ("", "nonsense", "-1", "0.5", "nan", "1e400", "9" * 5000, "\0", "nowhere/at/all", "{}")


def options() -> list[tuple[str, str, bool]]:
    """Return (command, option, whether it takes a value) for all options."""
    (commands,) = (a for a in _parser()._actions if isinstance(a, argparse._SubParsersAction))
    return [
        (command, action.option_strings[-1], action.nargs != 0)
        for command, parser in commands.choices.items()
        for action in parser._actions
        if action.option_strings
    ]


LEAST = {
    "generate": ["--prompt", "x", "--target", "nowhere/at/all", "--draft", "nowhere/at/all"],
    "replay": ["nowhere.npz"],
    "bench": ["--vocab-size", "9", "--capacity", "99"],
    "info": ["--advise", "nothing"],
}
assert LEAST.keys() == COMMANDS.keys()


@pytest.mark.parametrize(
    ("command", "option", "value"),
    [
        (command, option, value)
        for command, option, valued in options()
        for value in (VALUES if valued else (None,))
        if option not in TAKE_ANY
    ],
)
def test_a_value_that_means_nothing(command, option, value, capsys):
    """A call may have other mistakes too: the first one found ends it, in one line."""
    words = [option] if value is None else [f"{option}={value}"]
    try:
        code = main([command, *LEAST[command], *words])
    except SystemExit as end:
        code = end.code
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert err.endswith("\n") and err.count("\n") == 1
    assert err.startswith("microspec")
