# SPDX-License-Identifier: Apache-2.0
"""Every malformed call of `generate` gives one line and exit code 2, before models load."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import small_pair
import torch
from malformed import LISTS, Planted, damaged, npy, pt
from safetensors.torch import load_file, save_file

from microspec_kernels import speculative
from microspec_kernels.cli import main, tokenizers

Damage = Callable[[Path], object]


class Letters:
    tokenizer = None  # of no kind that tells its tokens

    def encode(self, prompt: str) -> list[int]:
        return [ord(letter) for letter in prompt]

    def decode(self, tokens: list[int]) -> str:
        return " ".join(map(str, tokens))


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = small_pair.save(tmp_path_factory.mktemp("pair"))
    for name, content in LISTS.items():
        (folder / name).write_bytes(content)
    (folder / "file").touch()
    (folder / "folder").mkdir()
    return folder


@pytest.fixture
def refused(sound, monkeypatch, capsys):
    monkeypatch.chdir(sound)
    monkeypatch.setattr(tokenizers, "Tekken", Letters)

    def call(*words: str) -> str:
        try:
            code = main(["generate", *words])
        except SystemExit as end:
            code = end.code
        out, err = capsys.readouterr()
        assert (code, out) == (2, ""), err
        assert err.endswith("\n") and err.count("\n") == 1 and "\r" not in err, err
        assert err.startswith(("microspec generate: ", "microspec: unrecognized arguments: "))
        assert len(err) < 700, err
        return err

    return call


@pytest.fixture
def no_model(monkeypatch):
    """Raise an error with a traceback if anything loads."""

    def load(*_: object, **__: object) -> None:
        raise AssertionError("a model or a tokenizer was loaded")

    monkeypatch.setattr(speculative, "load_target", load)
    monkeypatch.setattr(speculative, "load_draft", load)
    monkeypatch.setattr(tokenizers, "load_tokenizer", load)


PAIR = ["--prompt", "hello", "--pair", "."]


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("words", "named"),
    [
        *(
            (f"--device {device}", "--device")
            for device in ("meta", "nonsense", "cpu:7", "cuda:99")
        ),
        ("--device=", "--device"),
        ("--dtype int8", "--dtype"),
        ("--head tree", "--head"),
        *((f"--temperature={value}", "--temperature") for value in ("nan", "inf", "-1", "hot", "")),
        *((f"--temperature 1 --top-p={value}", "--top-p") for value in ("0", "1.5", "nan", "-1")),
        ("--temperature 1 --sampled-top-k -1", "--sampled-top-k"),
        ("--temperature 1 --sampled-top-k 1.5", "--sampled-top-k"),
        *((f"--temperature 1 --seed={value}", "--seed") for value in (-1, 2**64, 1.5, "x")),
        ("--depth 0", "--depth"),
        ("--tree-width 0", "--tree-width"),
        ("--tree-width 129", "--tree-width"),
        ("--tree-size 0", "--tree-size"),
        ("--max-new-tokens 0", "--max-new-tokens"),
        ("--max-new-tokens 1.5", "--max-new-tokens"),
        ("--capacity 0", "--capacity"),
        ("--head static --static-capacity 0", "--static-capacity"),
        ("--head static --static-capacity 151", "--static-capacity"),
        ("--pin -5", "--pin"),
        ("--pin 0", "--pin"),
        ("--pin 1.5", "--pin"),
        ("--pin 5", "--no-learn"),
        ("--no-fill", "--no-learn"),
        ("--no-learn --pin 151", "--pin"),
        ("--no-learn --pin 20 --capacity 10", "--pin"),
        ("--lists 0", "--lists"),
        ("--timeline step.txt", "--timeline"),
        ("--timeline absent/step.svg", "--timeline"),
        ("--head none --timeline step.svg", "--timeline"),
        ("--head dense --mode packed", "--mode"),
        ("--lists 2 --no-learn", "--learn"),
        ("--learned learned.safetensors --no-learn", "--learn"),
        ("--learned absent/learned.safetensors", "--learned"),
        ("--prior absent", "absent"),
        ("--prior absent/tokenizer.json", "absent/tokenizer.json"),
        ("--json absent/out.json", "--json"),
        ("--json folder", "--json"),
        ("--max 4", "--max"),
        ("--pair absent", "--pair"),
        ("--pair file", "--pair"),
        ("--target absent", "--target"),
        ("--target absent/at/all", "--target"),
        ("--target file", "--target"),
        ("--target folder", "--target"),
        ("--target ./", "--target"),
        ("--draft absent", "--draft"),
        ("--draft file", "--draft"),
        ("--draft folder", "--draft"),
        ("--tokenizer absent", "--tokenizer"),
        ("--tokenizer file", "--tokenizer"),
        ("--target target --draft draft --tokenizer draft --prior sound.npy", "--pair"),
        ("--compare --head sparse", "--head"),
        ("--head none --draft draft", "--draft"),
        ("--head none --depth 3", "--depth"),
        ("--head none --tree-width 3", "--tree-width"),
        ("--head none --tree-size 3", "--tree-size"),
        ("--head none --chain", "--chain"),
        ("--head none --capacity 64", "--capacity"),
        ("--head none --pin 5", "--pin"),
        ("--head none --no-fill", "--no-fill"),
        ("--head none --prior sound.npy", "--prior"),
        ("--head none --lists 2", "--lists"),
        ("--head dense --learned learned.safetensors", "--learned"),
        ("--head dense --capacity 64", "--capacity"),
        ("--head dense --pin 5", "--pin"),
        ("--head static --no-fill", "--no-fill"),
        ("--head dense --prior sound.npy", "--prior"),
        ("--head dense --static-capacity 64", "--static-capacity"),
        ("--head sparse --static-capacity 64", "--static-capacity"),
        ("--head static --capacity 64", "--capacity"),
        ("--no-learn --no-fill --prior sound.npy", "--prior"),
        ("--chain --tree-width 4", "--tree-width"),
        ("--chain --tree-size 4", "--tree-size"),
        ("--top-p 0.5", "--top-p"),
        ("--sampled-top-k 5", "--sampled-top-k"),
        ("--seed 5", "--seed"),
    ],
)
def test_an_option_before_anything_is_loaded(words, named, refused):
    assert named in refused(*PAIR, *words.split())


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("", "--prompt"),
        ("--prompt x", "--target"),
        ("--prompt x --target target", "--draft"),
        ("--prompt x --target target --compare", "--draft"),
        ("--prompt caf\udce9 --pair .", "--prompt"),
    ],
)
def test_a_call_that_lacks_something(words, named, refused):
    assert named in refused(*words.split())


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    "name", [*sorted(LISTS.keys() - {"sound.npy", "sound.pt", "beyond.npy", "large.npy"}), "folder"]
)
def test_a_list_of_tokens(name, refused):
    assert name in refused(*PAIR, "--prior", name)


def test_ids_beyond_the_target(refused):
    beyond = npy([3, small_pair.VOCAB])
    Path("beyond-target.npy").write_bytes(beyond)
    line = refused(*PAIR, "--prior", "beyond-target.npy")
    assert "beyond-target.npy" in line and str(small_pair.VOCAB) in line
    assert "--tokenizer" in refused("--prompt", "h\u00e9llo", "--pair", ".", "--head", "none")
    assert "--prompt" in refused("--prompt", "", "--pair", ".", "--head", "none")
    for option in (["--capacity"], ["--head", "static", "--prior", "ids", "--static-capacity"]):
        assert option[-1] in refused(*PAIR, *option, str(small_pair.VOCAB + 1))


def test_a_file_of_learned_lists(refused):
    Path("torn.safetensors").write_bytes(b"\xff" * 64)
    assert "torn.safetensors" in refused(*PAIR, "--learned", "torn.safetensors")


def rewrite(name: str, content: bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(content)


def cut(name: str, count: int) -> Damage:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:count])


def broken(name: str) -> Damage:
    return lambda folder: (folder / name).write_bytes(damaged((folder / name).read_bytes()))


def configured(**change: object) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / "config.json"
        config = json.loads(path.read_text()) | change
        path.write_text(json.dumps({k: v for k, v in config.items() if v != "drop"}))

    return damage


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Damage:
    def damage(folder: Path) -> None:
        state = load_file(folder / WEIGHTS)
        change(state)
        save_file(state, folder / WEIGHTS, metadata={"format": "pt"})

    return damage


def instead(content: bytes) -> Damage:
    """Replace the safetensors by a .bin."""

    def damage(folder: Path) -> None:
        (folder / WEIGHTS).unlink()
        (folder / "pytorch_model.bin").write_bytes(content)

    return damage


def as_folder(name: str) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).mkdir()

    return damage


WEIGHTS, NORM = "model.safetensors", "model.norm.weight"
EARLY: dict[str, Damage] = {
    "no config": lambda folder: (folder / "config.json").unlink(),
    "empty config": rewrite("config.json", b""),
    "cut config": cut("config.json", 40),
    "latin config": rewrite("config.json", b'{"a": "\xe9"}'),
    "config that is a list": rewrite("config.json", b"[]"),
    "config that is a folder": as_folder("config.json"),
    "model_type of a number": configured(model_type=3),
    "architectures of a number": configured(architectures=3),
    "cut generation config": cut("generation_config.json", 10),
    "generation config that is a list": rewrite("generation_config.json", b"[1]"),
    "broken index": rewrite("model.safetensors.index.json", b"{"),
    "no weights": lambda folder: (folder / WEIGHTS).unlink(),
    "empty weights": rewrite(WEIGHTS, b""),
    "weights of text": rewrite(WEIGHTS, b"not tensors at all"),
    "weights of a huge header": rewrite(WEIGHTS, b"\xff" * 64),
    "cut weights": cut(WEIGHTS, 1000),
    "weights cut at the end": lambda folder: cut(WEIGHTS, (folder / WEIGHTS).stat().st_size - 9)(
        folder
    ),
    "weights that are a folder": as_folder(WEIGHTS),
}
LATE: dict[str, Damage] = {
    "no model_type": configured(model_type="drop"),
    "unknown model_type": configured(model_type="abacus"),
    "sizes of text": configured(hidden_size="wide"),
    "another size": configured(hidden_size=64),
    "heads that do not divide": configured(num_attention_heads=3, head_dim=None),
    "another vocabulary": configured(vocab_size=50),
    "tensors without one": tensors(lambda state: state.pop(NORM)),
    "a tensor of another shape": tensors(lambda state: state.update({NORM: torch.zeros(7)})),
    "tensors of other names": tensors(lambda state: (state.clear(), state.update(a=torch.ones(1)))),
    "a .bin that is empty": instead(b""),
    "a .bin of text": instead(b"not tensors"),
    "a .bin of a pickle": instead(pickle.dumps(Planted(), protocol=2)),
    "a .bin that is cut": instead(pt({NORM: torch.ones(4000)})[:3000]),
    "a .bin of a list": instead(pt([1, 2])),
}


@pytest.fixture
def folder(sound, tmp_path):
    shutil.copytree(sound / "target", tmp_path / "damaged")
    return tmp_path / "damaged"


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("option", ["--target", "--draft"])
@pytest.mark.parametrize("damage", EARLY.values(), ids=EARLY)
def test_a_folder_before_anything_is_loaded(damage, option, folder, refused):
    damage(folder)
    assert str(folder) in refused(*PAIR, option, str(folder))


@pytest.mark.parametrize("option", ["--target", "--draft"])
@pytest.mark.parametrize("damage", LATE.values(), ids=LATE)
def test_a_folder(damage, option, folder, refused):
    damage(folder)
    assert str(folder) in refused(*PAIR, option, str(folder))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"version": "1.0"}', b"\xff\xfe"])
def test_a_tokenizer(content, folder, refused):
    (folder / "tokenizer.json").write_bytes(content)
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"})
    )
    assert str(folder) in refused(*PAIR, "--tokenizer", str(folder))


def test_a_folder_without_a_tokenizer(folder, refused):
    assert str(folder) in refused(*PAIR, "--tokenizer", str(folder))


@pytest.mark.parametrize("template", ["{{ messages[", "{{ missing.attribute }}", "{{ 1 / 0 }}"])
def test_a_chat_template(template, folder, refused):
    from malformed import tokenizer

    (folder / "tokenizer.json").write_bytes(tokenizer())
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert str(folder) in refused(*PAIR, "--tokenizer", str(folder))
