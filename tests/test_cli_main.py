# SPDX-License-Identifier: Apache-2.0
"""The command line outside its subcommands' own tests: errors, --json, info and bench."""

import io
import json
import subprocess
import sys

import pytest
import torch
from known_times import KnownTimes

import microspec_kernels
from microspec_kernels import timing
from microspec_kernels.cli import COMMANDS, bench, main
from microspec_kernels.cli.table import table

SIZES = {"vocab-size": 512, "dim": 32, "capacity": 64, "k": 5, "num-tokens": 3, "rounds": 15}
BENCH = [f"--{name}={size}" for name, size in SIZES.items()]


def test_every_subcommand_explains_itself(capsys):
    for command in COMMANDS:
        with pytest.raises(SystemExit) as end:
            main([command, "--help"])
        assert end.value.code == 0
        assert "--json" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["replay", "absent.npz"], "absent.npz"),
        (["replay", __file__], "expected an .npz"),
        (["replay", "absent.npz", "--pin", "4"], "--no-learn"),
        (["generate", "--prompt", "x"], "--target"),
        (["generate", "--prompt", "x", "--pair", "absent"], "no folder absent"),
        (["generate", "--prompt", "x", "--target", "absent"], "--draft"),
        (["bench", *BENCH, "--k", "65"], "capacity"),
        (["bench", *BENCH, "--device", "abacus"], "abacus"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments, reason, capsys):
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert err.startswith(f"microspec {arguments[0]}: ") and reason in err


@pytest.mark.parametrize("arguments", [["dance"], ["bench", "--k", "0"], ["generate"], []])
def test_what_argparse_refuses_is_one_line_and_exit_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("microspec")


def test_a_missing_extra_is_named(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert main(["replay", str(tmp_path / "any.npz")]) == 2
    assert "tqdm" in capsys.readouterr().err


def test_a_reader_that_has_seen_enough_is_no_error(monkeypatch):
    def ends(args):
        raise BrokenPipeError

    errors = io.StringIO()
    monkeypatch.setattr(COMMANDS["info"], "run", ends)
    monkeypatch.setattr(sys, "stderr", errors)
    assert main(["info"]) == 1
    assert errors.closed, "or Python would say that it could not write the rest"


def test_tables_have_text_to_the_left_and_numbers_to_the_right():
    rows = [{"head": "a", "K": 1, "share": 0.5}, {"head": "dense", "K": 1024, "share": None}]
    assert table(rows).splitlines() == [
        "head      K  share",
        "a         1  0.500",
        "dense  1024      -",
    ]


def test_info_says_the_same_in_both_ways(tmp_path, capsys):
    file = tmp_path / "info.json"
    assert main(["info", "--json", str(file)]) == 0
    facts = json.loads(file.read_text())
    assert facts["version"] == microspec_kernels.__version__
    assert facts["backend"] in facts["backends"]
    out = capsys.readouterr().out
    assert facts["library"] in out and facts["torch"] in out
    assert len(out.splitlines()) == len(facts)


def test_bench_times_every_head(tmp_path, capsys, monkeypatch):
    file, timed = tmp_path / "bench.json", KnownTimes()
    monkeypatch.setattr(timing, "time_arms", timed)
    assert main(["bench", *BENCH, "--dtype", "float32", "--json", str(file)]) == 0
    figures = json.loads(file.read_text())
    assert figures["capacity"] == 64 and figures["device_name"]
    assert set(figures["seconds"]) == {"dense", "select", "sparse indexed", "sparse packed"}
    for name, took in timed.columns():
        seconds = figures["seconds"][name]
        assert [seconds[p] * 1e6 for p in ("p20", "p50", "p80")] == pytest.approx(took)
    out = capsys.readouterr().out
    assert figures["device_name"] in out
    # 1, 2 and 4 µs of the dense head; 12 µs of select
    head, *lines = (line.split() for line in out.splitlines()[2:])
    assert head == ["head", "p20", "ms", "p50", "ms", "p80", "ms", "speedup"]
    assert lines[0][-4:] == ["0.001", "0.002", "0.004", "1.000"]
    assert float(lines[1][-1]) == pytest.approx(2 / 12, abs=1e-3)


def test_bench_s_arms_give_the_same_tokens():
    """The arms return the best active tokens; the dense head's are the best of all."""
    weight, hidden = bench.operands(200, 32, 3, torch.device("cpu"), torch.float32)
    arms = bench.arms_for(weight, hidden, 50, 5)
    values, tokens = arms["select"]()
    every = (hidden @ weight.T).log_softmax(-1)
    assert torch.equal(arms["dense"]().indices, every.topk(5).indices)
    assert (tokens.sort(1).values != every.topk(5).indices.sort(1).values).any()
    for name in ("sparse indexed", "sparse packed"):
        found, its = arms[name]()
        assert torch.equal(its, tokens)
        torch.testing.assert_close(found, values)
    everything = bench.arms_for(weight, hidden, 200, 5)
    assert torch.equal(everything["select"]()[1], every.topk(5).indices)


@pytest.mark.parametrize("mode", ["indexed", "packed"])
def test_bench_times_nothing_that_is_wrong(mode, monkeypatch, capsys):
    def wrong(self, hidden, k):
        logits, tokens, logsumexp = forward(self, hidden, k)
        packed = self.slab is not None
        return logits, tokens, logsumexp + 0.1 * (packed == (mode == "packed"))

    forward = microspec_kernels.SparseHead.forward
    monkeypatch.setattr(microspec_kernels.SparseHead, "forward", wrong)
    assert main(["bench", *BENCH]) == 2
    assert f"sparse {mode}" in capsys.readouterr().err


def test_the_module_runs_as_a_program():
    command = [sys.executable, "-m", "microspec_kernels.cli", "--version"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert run.stdout == f"microspec {microspec_kernels.__version__}\n"
