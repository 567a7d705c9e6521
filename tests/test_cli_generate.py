# SPDX-License-Identifier: Apache-2.0
"""`microspec generate` on a small random pair."""

import json

import pytest
import small_pair
import torch
import transformers
from safetensors.torch import load_file
from small_pair import VOCAB
from tokenizers import Tokenizer, models

from microspec_kernels.cli import main, tokenizers
from microspec_kernels.speculative import alone as baseline
from microspec_kernels.speculative import heads

static = heads.Static


class Letters:
    """A tokenizer with one token per character; any token decodes to a letter."""

    tokenizer = None  # of no kind that tells its tokens

    def encode(self, prompt: str) -> list[int]:
        return [ord(letter) for letter in prompt]

    def decode(self, tokens: list[int]) -> str:
        return "".join(chr(ord("a") + token % 26) for token in tokens)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return small_pair.save(tmp_path_factory.mktemp("pair"))


@pytest.fixture(autouse=True)
def letters(monkeypatch):
    monkeypatch.setattr(tokenizers, "load_tokenizer", lambda name: Letters())


def run(pair, tmp_path, *options) -> dict:
    file = tmp_path / "out.json"
    fixed = ["--pair", str(pair), "--prompt", "hello", "--max-new-tokens", "24"]
    fixed += [] if "none" in options else ["--depth", "3"]
    fixed += [] if {"none", "--chain"} & {*options} else ["--tree-size", "12", "--tree-width", "4"]
    fixed += [] if {"none", "static"} & {*options} else ["--capacity", "64"]
    assert main(["generate", *fixed, *options, "--json", str(file)]) == 0
    return json.loads(file.read_text())


def test_compare_runs_every_head_to_the_same_text(pair, tmp_path, capsys):
    data = run(pair, tmp_path, "--compare")
    assert [row["head"] for row in data["rows"]] == ["none", "dense", "static", "sparse"]
    assert {row["identical"] for row in data["rows"]} == {"yes"}
    model = transformers.LlamaForCausalLM.from_pretrained(pair / "target")
    prompt = torch.tensor([Letters().encode("hello")])
    continued = model.generate(prompt, max_new_tokens=24, do_sample=False)[0, prompt.shape[1] :]
    assert all(tokens == continued.tolist() for tokens in data["tokens"].values())
    rows = {row["head"]: row for row in data["rows"]}
    assert rows["none"]["τ"] == 1 and rows["dense"]["τ"] > 1
    assert rows["dense"]["active"] == VOCAB and rows["static"]["active"] == 150
    assert 0 < rows["sparse"]["active"] <= 64
    out = capsys.readouterr().out
    assert data["text"] in out and "every output equals the target's own" in out
    heading, *lines = out.partition("where the time goes\n\n")[2].split("\n\n")[0].splitlines()
    assert " ".join(heading.split()) == (
        "head prefill draft layer draft head tree verify vocabulary between"
    )
    assert [line.split()[0] for line in lines] == ["dense", "static", "sparse"]
    for line in lines:
        shares = [float(share.removesuffix("%")) for share in line.split()[1:]]
        assert abs(sum(shares) - 100) < 0.5 and min(shares) >= 0 and shares[4] > 0


def test_a_difference_is_said(pair, tmp_path, monkeypatch, capsys):
    def other(*args):
        result = alone(*args)
        result.tokens[-1] = (result.tokens[-1] + 1) % VOCAB
        return result

    alone = baseline.target_alone
    monkeypatch.setattr(baseline, "target_alone", other)
    data = run(pair, tmp_path, "--compare")
    assert [row["identical"] for row in data["rows"]] == ["yes", "no", "no", "no"]
    assert "DOES NOT EQUAL" in capsys.readouterr().out


def test_a_sampled_text_is_the_targets_own_too(pair, tmp_path, capsys):
    drawn = ["--compare", "--temperature", "2"]
    first, again, other = (run(pair, tmp_path, *drawn, "--seed", seed) for seed in ("5", "5", "6"))
    assert {row["identical"] for row in first["rows"]} == {"yes"}
    assert first["tokens"] == again["tokens"]
    assert first["tokens"]["none"] != other["tokens"]["none"]
    assert "every output equals the target's own" in capsys.readouterr().out
    greedy = run(pair, tmp_path, "--head", "none")["text"]
    assert first["text"] != greedy
    for only_one in (["--sampled-top-k", "1"], ["--top-p", "1e-9"]):
        assert (
            run(pair, tmp_path, "--head", "none", "--temperature", "2", *only_one)["text"] == greedy
        )


def test_chains_are_compared_where_their_text_is_certain(pair, tmp_path, capsys):
    data = run(pair, tmp_path, "--compare", "--chain")
    assert {row["identical"] for row in data["rows"]} == {"yes"}
    capsys.readouterr()
    data = run(pair, tmp_path, "--compare", "--chain", "--temperature", "2")
    assert {row["identical"] for row in data["rows"]} == {"-"}
    assert len({tuple(tokens) for tokens in data["tokens"].values()}) > 1
    assert "target's own" not in capsys.readouterr().out


def test_one_head(pair, tmp_path):
    (row,) = run(pair, tmp_path, "--head", "static", "--static-capacity", "100")["rows"]
    assert row["head"] == "static" and row["active"] == 100 and row["identical"] == "-"
    assert row["head ms"] > 0 and row["draft ms"] > row["head ms"]


def test_what_the_vocabulary_begins_with(pair, tmp_path):
    """The frequent tokens fill 64 slots of a larger vocabulary, unless --no-fill forbids it."""
    whole, beside, pinned, empty = (
        run(pair, tmp_path, "--head", "sparse", "--no-learn", "--max-new-tokens", "2", *options)
        for options in ((), ("--pin", "5"), ("--pin", "5", "--no-fill"), ("--no-fill",))
    )
    assert whole["stats"]["sparse"]["active_mean"] == 64
    assert beside["stats"]["sparse"]["active_mean"] == 64
    assert 5 <= pinned["stats"]["sparse"]["active_mean"] < 64
    assert 0 < empty["stats"]["sparse"]["active_mean"] < pinned["stats"]["sparse"]["active_mean"]
    assert whole["tokens"] == beside["tokens"] == pinned["tokens"] == empty["tokens"]


def test_what_was_learned_lasts(pair, tmp_path):
    """Of all runs of --compare one counts, and none begins with what another one taught."""
    file, options = tmp_path / "learned.safetensors", ["--prior", "ids", "--capacity", "40"]
    options += ["--learned", str(file), "--lists", "2"]
    first = run(pair, tmp_path, "--compare", *options)
    counts = load_file(file)["text_counts"]
    assert counts.shape == (2, VOCAB)
    written = sorted(set(first["tokens"]["sparse"]))
    assert counts.sum(0).nonzero().flatten().tolist() == written and counts.max() == 1
    again = run(pair, tmp_path, "--head", "sparse", *options)
    assert load_file(file)["text_counts"].sum(0)[written].tolist() == [2] * len(written)
    assert first["stats"]["sparse"]["coverage"] < again["stats"]["sparse"]["coverage"]
    assert first["tokens"]["sparse"] == again["tokens"]["sparse"]


def test_the_tokenizer_s_order_is_the_prior(pair, tmp_path, monkeypatch):
    """Where neither --pair nor --prior has a list, the tokens of the tokenizer lead."""
    known = Tokenizer(models.WordLevel({f"w{i}": 150 + i for i in range(40)}, unk_token="w0"))
    monkeypatch.setattr(Letters, "tokenizer", known)
    parts = ["--target", str(pair / "target"), "--draft", str(pair / "draft")]
    options = ["--prompt", "hello", "--max-new-tokens", "8", "--head", "static"]
    for prior, most in ((None, range(150, 190)), ("ids", range(40))):
        file = tmp_path / "out.json"
        call = ["generate", *parts, *options, *([] if prior is None else ["--prior", prior])]
        seen = []
        with monkeypatch.context() as patch:
            patch.setattr(
                heads, "Static", lambda head, ids, seen=seen: seen.append(ids) or static(head, ids)
            )
            assert main([*call, "--static-capacity", "40", "--json", str(file)]) == 0
        assert seen[0].tolist() == list(most)
