# SPDX-License-Identifier: Apache-2.0
"""Every malformed call of `replay`, `bench` and `info` gives one line on stderr and exit code 2."""

import os
from pathlib import Path

import pytest
from malformed import LISTS, TEXTS, TOKENIZERS, TRACES, write_all

from microspec_kernels.cli import main

SOUND_LISTS, SOUND_TRACES = {"sound.npy", "sound.pt"}, {"sound.npz"}
SOUND_TEXTS = {"sound.txt", "sound.jsonl"}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_all(tmp_path_factory.mktemp("files"))


@pytest.fixture
def refused(files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run a call in the folder of files and return its one line on stderr."""

    monkeypatch.chdir(files)

    def call(command: str, *words: str) -> str:
        try:
            code = main([command, *words])
        except SystemExit as end:
            code = end.code
        out, err = capsys.readouterr()
        assert (code, out) == (2, "")
        assert err.endswith("\n") and err.count("\n") == 1, err
        assert err.startswith((f"microspec {command}: ", "microspec: unrecognized arguments: "))
        return err.partition(": ")[2]

    return call


@pytest.mark.parametrize("name", [*sorted(TRACES.keys() - SOUND_TRACES), "absent.npz", "folder"])
def test_a_trace(name, refused):
    assert name in refused("replay", "sound.npz", name)


@pytest.mark.parametrize("name", [*sorted(LISTS.keys() - SOUND_LISTS), "absent.npy", "folder"])
def test_a_list_of_tokens(name, refused):
    call = ("sound.npz", "--vocab-size", "50", "--prior", name)
    assert name in refused("replay", *call)


@pytest.mark.parametrize("name", ["sound.npy", "sound.pt"])
@pytest.mark.parametrize("option", ["", "--no-learn --pin 2", "--no-learn --pin 2 --no-fill"])
def test_a_sound_list_and_trace_are_taken(name, option, files, monkeypatch, capsys):
    monkeypatch.chdir(files)
    call = ["replay", "sound.npz", "--capacity", "20", "--prior", name, *option.split()]
    assert main(call) == 0
    policy = capsys.readouterr().out
    assert ("pin2" in policy) == ("--pin" in option)
    assert ("filled" in policy) != ("--no-fill" in option)


@pytest.mark.parametrize("name", [*sorted(TEXTS.keys() - SOUND_TEXTS), "absent.txt", "folder"])
def test_a_text(name, refused):
    line = refused("replay", "--text", name, "--tokenizer", "tokenizer.json")
    assert name in line and len(line) < 300


@pytest.mark.parametrize(
    "name", [*sorted(TOKENIZERS.keys() - {"tokenizer.json"}), "sound.txt", "folder"]
)
def test_a_tokenizer(name, refused):
    assert name in refused("replay", "--text", "sound.txt", "--tokenizer", name)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("", "TRACE.npz"),
        ("--capacity 0", "--capacity"),
        ("--capacity 1.5", "--capacity"),
        ("--capacity 4,", "--capacity"),
        ("--capacity=", "--capacity"),
        ("--capacity 4,x", "--capacity"),
        ("--capacity 51 --vocab-size 50", "--capacity"),
        ("--capacity 10000000000000", "--capacity"),
        ("--vocab-size 0", "--vocab-size"),
        ("--vocab-size 49", "--vocab-size"),
        ("--vocab-size 1e3", "--vocab-size"),
        ("--vocab-size 10000000000000", "--vocab-size"),
        ("--vocab-size 2147483648", "--vocab-size"),
        ("--step 0", "--step"),
        ("--step 0.5", "--step"),
        ("--no-learn --pin -1", "--pin"),
        ("--no-learn --pin 0", "--pin"),
        ("--no-learn --pin 1.5", "--pin"),
        ("--no-learn --pin 4 --prior sound.npy", "--pin"),
        ("--no-learn --pin 2 --capacity 1", "--pin"),
        ("--pin 2", "--pin"),
        ("--no-fill", "--no-fill"),
        ("--keep", "--keep"),
        ("--lists 0", "--lists"),
        ("--lists 2 --no-learn", "--lists"),
        ("--shared 0", "--shared"),
        ("--mix 0", "--mix"),
        ("--mix x", "--mix"),
        ("--prior absent", "absent"),
        ("--prior sound.txt", "sound.txt"),
        ("--prior folder", "folder"),
        ("--source tree", "--source"),
        ("--source prompt=0", "--source"),
        ("--source prompt=1.5", "--source"),
        ("--source prompt=99999999999999999", "--source"),
        ("--source successors", "--source"),
        ("--tokenizer tokenizer.json", "--tokenizer"),
        ("--prompt-tokens 2", "--prompt-tokens"),
        ("--text sound.txt", "--tokenizer"),
        ("--text sound.txt --tokenizer tokenizer.json --prompt-tokens -1", "--prompt-tokens"),
        ("--text sound.txt --tokenizer tokenizer.json --prompt-tokens 8", "sound.txt"),
        ("--text sound.jsonl --tokenizer tokenizer.json --prompt-tokens 1", "--prompt-tokens"),
        ("--plot absent/plot.svg", "--plot"),
        ("--plot folder", "--plot"),
        ("--plot plot.txt", "--plot"),
        ("--plot plot", "--plot"),
        ("--json absent/out.json", "--json"),
        ("--json folder", "--json"),
        ("--cap 4", "--cap"),
        ("--pri sound.npy", "--pri"),
        ("--nonsense", "--nonsense"),
    ],
)
def test_an_option_of_replay(words, named, refused):
    assert named in refused("replay", *(["sound.npz"] if words else []), *words.split())


@pytest.mark.parametrize("option", ["--plot", "--json"])
def test_a_path_is_checked_before_anything_is_read(option, refused):
    assert option in refused("replay", "absent.npz", option, "absent/out.svg")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        *((f"--device {device}", "--device") for device in ("meta", "nonsense", "cpu:7", "mps")),
        ("--device xpu", "--device"),
        ("--device=", "--device"),
        ("--device cuda:99", "--device"),
        ("--device hpu", "--device"),
        ("--dtype int8", "--dtype"),
        ("--dtype float64", "--dtype"),
        ("--k 0", "--k"),
        ("--k 129", "--k"),
        ("--k 65 --capacity 64", "--k"),
        ("--k 1.5", "--k"),
        ("--capacity 0", "--capacity"),
        ("--capacity 513 --vocab-size 512", "--capacity"),
        ("--vocab-size 1e3", "--vocab-size"),
        ("--vocab-size 1000000000000000", "--vocab-size"),
        ("--vocab-size 16000000 --dim 1000000", "--vocab-size"),
        ("--dim 1000000000000000000000", "--dim"),
        ("--num-tokens 100000000000", "--num-tokens"),
        ("--rounds 3", "--rounds"),
        ("--rounds nan", "--rounds"),
        ("--round 15", "--round"),
        ("--cap 3072", "--cap"),
        ("--json folder", "--json"),
    ],
)
def test_an_option_of_bench(words, named, refused):
    assert named in refused("bench", *words.split())


HEAD = "V,D,K,M,arm,situation,p50_us,device"
ROW = "128256,2048,1024,1,dense,cold,10,here"
SOUND = f"{HEAD}\n{ROW}\n{ROW.replace('dense', 'sparse_head')}\n".encode()
DRAFT = "model,device,part,context,arm,share"


@pytest.mark.parametrize(
    ("head", "draft"),
    [
        (b"V,D\n1,2\n", b""),
        (b"", b""),
        (f"{HEAD}\n{ROW.replace('10', 'fast')}\n".encode(), b""),
        (f"{HEAD}\n{ROW.replace('1024', '1.5')}\n".encode(), b""),
        (f"{HEAD}\n{ROW.replace('10,', 'nan,')}\n".encode(), b""),
        (f"{HEAD}\n{ROW.removesuffix(',10,here')}\n".encode(), b""),
        (f"{HEAD}\n{ROW},more\n".encode(), b""),
        (f"{HEAD}\n{ROW}\xe9\n".encode("latin-1"), b""),
        (f"{HEAD}\n{'9' * 200_000}\n".encode(), b""),
        (SOUND, b"model\nx\n"),
        (SOUND, f"{DRAFT}\nLlama-3.2-1B,here,head,x,dense,1\n".encode()),
    ],
)
def test_figures(head, draft, tmp_path, refused, monkeypatch):
    monkeypatch.setattr("microspec_kernels.cli.advise.device_name", lambda: "here")
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "head.csv").write_bytes(head)
    if draft:
        (folder / "draft_step.csv").write_bytes(draft)
    line = refused("info", "--advise", "Llama-3.2-1B", "--results", str(tmp_path))
    assert str(folder / ("draft_step.csv" if draft else "head.csv")) in line and len(line) < 400


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("--advise nonsense", "--advise"),
        ("--advise=", "--advise"),
        ("--advise Llama-3.2-1B --results absent", "--results"),
        ("--advise Llama-3.2-1B --results sound.npz", "--results"),
        ("--advise Llama-3.2-1B --results folder", "--results"),
        ("--advise Llama-3.2-1B --results folder --run", "--results"),
        ("--results folder", "--results"),
        ("--run", "--run"),
        ("--json absent/out.json", "--json"),
        ("--json folder", "--json"),
        ("--adv Llama-3.2-1B", "--adv"),
        ("extra", "extra"),
    ],
)
def test_an_option_of_info(words, named, refused):
    assert named in refused("info", *words.split())


@pytest.mark.parametrize("name", ["sound.npz", "sound.npy", "sound.txt"])
def test_a_file_without_permission(name, files, refused):
    words = ["sound.npz", *(["--prior", name] if name == "sound.npy" else [])]
    if name == "sound.txt":
        words = ["--text", name, "--tokenizer", "tokenizer.json"]
    refused("replay", "absent.npz", "--text", "absent", "--tokenizer", "absent")  # imports
    (files / name).chmod(0)
    user = os.geteuid()
    try:
        if user == 0:  # root can read everything
            os.seteuid(65534)
        assert "Permission denied" in refused("replay", *words)
    finally:
        os.seteuid(user)
        (files / name).chmod(0o644)


def test_a_fault_of_the_program_is_a_traceback(files, monkeypatch):
    def wrong(*_: object, **__: object) -> None:
        raise TypeError("unsupported operand")

    monkeypatch.chdir(files)
    monkeypatch.setattr("microspec_kernels.cli.replay.replay", wrong)
    with pytest.raises(TypeError, match="unsupported operand"):
        main(["replay", "sound.npz"])
