# SPDX-License-Identifier: Apache-2.0
"""`microspec info --advise` over made-up figures with a known answer."""

import csv
import json
from pathlib import Path

import pytest

from bench.harness import models
from microspec_kernels.cli import advise, main, model_costs
from microspec_kernels.policy import StepCosts

HERE, OTHER = "NVIDIA H100 80GB HBM3", "NVIDIA H100 PCIe"
V, D = advise.SHAPES["Qwen3-8B"]
# Dense: 100 µs at M = 1 and 10, 120 at M = 60.
SPARSE = {
    (1, 1024): 10, (1, 3072): 12.5, (1, 8192): 40,
    (10, 1024): 11, (10, 3072): 20, (10, 8192): 100,
    (60, 1024): 121, (60, 3072): 130, (60, 8192): 300,
}  # fmt: skip


def line(m: int, k: int, arm: str, took: float, **more: str) -> dict[str, object]:
    shape = {"V": V, "D": D, "K": k, "M": m, "situation": "in situ"}
    return {**shape, "arm": arm, "p50_us": took, "device": HERE} | more


def figures() -> list[dict[str, object]]:
    rows = []
    for (m, k), took in SPARSE.items():
        rows += [
            line(m, k, "sparse_head packed", took),
            line(m, k, "sparse_head indexed", took + 1),
            line(m, k, "sparse_head packed fp8", 1),
            line(m, k, "NanoSpec", 1),
            line(m, k, "dense, compiled", 120 if m == 60 else 100),
            line(m, k, "dense, eager", 900),
            line(m, k, "sparse_head packed", 1, situation="warm"),
            line(m, k, "sparse_head packed", 2, situation="cold"),
            line(m, k, "dense, compiled", 1000, situation="cold"),
        ]
    return rows


def kept(folder: Path, rows: list[dict[str, object]], name: str = "head.csv") -> Path:
    (folder / "device").mkdir(exist_ok=True)
    with (folder / "device" / name).open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder


@pytest.fixture(autouse=True)
def _on_an_h100(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(advise, "device_name", lambda: HERE)


def asked(folder: Path, *more: str) -> list[str]:
    return ["info", "--advise", "qwen3-8b", "--results", str(folder), *more]


def test_where_the_dense_head_takes_over(tmp_path, capsys) -> None:
    file = tmp_path / "advice.json"
    assert main(asked(kept(tmp_path, figures()), "--json", str(file))) == 0
    out = capsys.readouterr().out
    assert "M = 1: the sparse head, at every K measured (1024 to 8192)" in out
    assert "M = 10: the dense head from K = 8192 on; the sparse one up to 3072" in out
    assert "M = 60: the dense head, at every K measured (1024 to 8192)" in out
    assert "Head's share of the draft: not measured" in out
    assert "not measured on this device" not in out
    advice = json.loads(file.read_text())
    assert advice["dense_from"] == {"1": None, "10": 8192, "60": 1024}
    assert {"capacity": 3072, "num_tokens": 1, "sparse": 12.5, "dense": 100} in advice["points"]


def test_the_heads_share_of_the_draft(tmp_path, capsys) -> None:
    kept(tmp_path, figures())
    drafts = [
        {"model": model, "device": device, "context": context, "arm": arm, "part": part}
        | {"share": share}
        for model, device, context, arm, part, share in (
            ("Qwen3-8B", HERE, 8192, "packed", "head", 0.05),
            ("Qwen3-8B", HERE, 1024, "packed", "head", 0.08),
            ("Qwen3-8B", HERE, 1024, "packed", "layer", 0.9),
            ("Qwen3-8B", HERE, 1024, "dense", "head", 0.625),
            ("Qwen3-8B", OTHER, 1024, "dense", "head", 0.5),
            ("Qwen3-8B", OTHER, 512, "packed", "head", 0.06),
            ("Llama-3.1-8B", HERE, 512, "dense", "head", 0.7),
        )
    ]
    assert main(asked(kept(tmp_path, drafts, "draft_step.csv"))) == 0
    assert "Head's share of the draft: packed 8%, dense 62%\n" in capsys.readouterr().out


def test_figures_in_ms_are_the_same_figures(tmp_path, capsys) -> None:
    told = []
    for rows in (
        figures(),
        [{**row, "p50_ms": float(row.pop("p50_us")) / 1e3} for row in figures()],
    ):
        assert main(asked(kept(tmp_path, rows))) == 0
        told.append(capsys.readouterr().out)
    assert told[0] == told[1]


def test_figures_of_a_like_device_are_said_to_be_its_own(tmp_path, capsys) -> None:
    assert main(asked(kept(tmp_path, [{**row, "device": OTHER} for row in figures()]))) == 0
    out = capsys.readouterr().out
    assert f"not measured on this device ({HERE})" in out and f", on {OTHER}" in out
    assert "M = 10: the dense head from K = 8192 on" in out


@pytest.mark.parametrize("device", ["NVIDIA A100-SXM4-80GB", "Intel(R) Xeon(R) Processor"])
def test_no_advice_from_another_kind_of_device(tmp_path, capsys, device) -> None:
    assert main(asked(kept(tmp_path, [{**row, "device": device} for row in figures()]))) == 0
    out = capsys.readouterr().out
    assert "not measured on this device" in out and "bench.run" in out
    assert "dense head" not in out.split("\n", 1)[1] and "µs" not in out


XEON, XEONS = (f"Intel(R) Xeon(R) Processor, {n} threads, AMX" for n in (2, 32))
# A word in all processors' names does not make two of them alike.
AMD, INTEL = (f"{name} Processor, 8 threads" for name in ("AMD Family 25", "Intel Family 6"))
EPYC, CORE = (f"{name}(TM) CPU Processor, 8 threads" for name in ("AMD(R) EPYC", "Intel(R) Core"))


@pytest.mark.parametrize(
    ("here", "devices", "taken"),
    [
        (HERE, [OTHER, HERE], HERE),
        (HERE, [OTHER, "NVIDIA H100 80GB"], "NVIDIA H100 80GB"),
        (HERE, ["NVIDIA A100-SXM4-80GB", OTHER], OTHER),
        (XEON, [XEONS], XEONS),
        (AMD, [INTEL], None),
        (EPYC, [CORE], None),
        (HERE, [], None),
    ],
)
def test_the_device_most_like_this_one(here: str, devices: list[str], taken: str | None) -> None:
    assert advise.nearest(here, devices) == taken
    assert advise.nearest(here, reversed(devices)) == taken


def test_no_advice_from_another_models_figures(tmp_path, capsys) -> None:
    kept(tmp_path, figures())
    assert main(["info", "--advise", "Gemma-3-4B", "--results", str(tmp_path)]) == 0
    assert "Gemma-3-4B: not measured on this device" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--advise", "GPT-2"], "Llama-3.1-8B"),
        (["--advise", "absent/config.json/x"], "no folder absent/config.json/x"),
        (["--advise", "Qwen3-8B", "--target", "GPT-2"], "--target: expected a folder"),
        (["--drafts", "3"], "--advise"),
        (["--advise", "Qwen3-8B", "--results", "absent"], "no folder absent"),
        (["--run"], "--advise"),
    ],
)
def test_mistakes(arguments, reason, capsys) -> None:
    assert main(["info", *arguments]) == 2
    assert reason in capsys.readouterr().err


def test_a_quick_run_measures_both_heads(monkeypatch, capsys) -> None:
    monkeypatch.setitem(model_costs.KNOWN, "Qwen3-8B", (2000, 64, 2, 10_000))
    monkeypatch.setattr(advise, "RUN_SIZES", {"K": (64, 128), "M": (1, 3)})
    assert main(["info", "--advise", "Qwen3-8B", "--run"]) == 0
    out = capsys.readouterr().out
    assert f"a quick run, on {HERE}" in out and "not measured on this device" not in out
    assert len([row for row in out.splitlines() if row.split()[:1] in (["64"], ["128"])]) == 4


def test_the_nearest_device_has_figures_of_both_heads(tmp_path, capsys) -> None:
    """Another run on a device as near may have measured one head alone."""
    alone = [{**row, "device": f"{OTHER} more"} for row in figures() if "dense" not in row["arm"]]
    rows = alone + [{**row, "device": OTHER} for row in figures()]
    assert main(asked(kept(tmp_path, rows))) == 0
    assert f", on {OTHER}\n" in capsys.readouterr().out


LLAMA = {
    "model_type": "llama", "vocab_size": 5000, "hidden_size": 64, "intermediate_size": 160,
    "num_hidden_layers": 6, "num_attention_heads": 4, "num_key_value_heads": 2, "dtype": "bfloat16",
    "tie_word_embeddings": False, "architectures": ["LlamaForCausalLM"],
}  # fmt: skip
NORMS, BODY = 2 * 64, 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 160
LAYER = BODY + NORMS


def costs(tmp_path: Path, config: dict[str, object], **more: object) -> tuple[str, StepCosts]:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    options = {"target": None, "drafts": 3, "requests": 1} | more
    kind, counted, dim = model_costs.step_costs(str(path), **options)
    assert dim == 64
    return kind, counted


def test_a_configs_bytes(tmp_path) -> None:
    """Every part by hand: layers and last norm, the LM head, an EAGLE layer with fc."""
    kind, got = costs(tmp_path, LLAMA)
    assert kind == "an EAGLE draft"
    assert got.target_bytes == 2 * (6 * LAYER + 64 + 5000 * 64)
    assert got.layer_bytes == 2 * (LAYER + 2 * 64 * 64)
    assert (got.row_bytes, got.num_rows, got.num_drafts) == (128, 5000, 3)


def test_quantised_layers_beside_a_plain_head(tmp_path) -> None:
    for quantised, bits in (
        ({"quant_method": "fp8"}, 8),
        ({"quant_method": "gptq", "bits": 4}, 4),
        ({"quant_method": "x", "config_groups": {"group_0": {"weights": {"num_bits": 4}}}}, 4),
        ({"quant_method": "unheard of"}, 16),
    ):
        _, got = costs(tmp_path, {**LLAMA, "quantization_config": quantised})
        assert got.target_bytes == bits / 8 * (6 * LAYER + 64) + 2 * 5000 * 64
        assert got.row_bytes == 128


def test_experts_that_a_pass_uses(tmp_path) -> None:
    """Two of eight experts a token; four tokens of a pass use 1 - (3/4)^4 of them."""
    config = {
        **LLAMA, "model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2,
        "architectures": ["MixtralForCausalLM"],
    }  # fmt: skip
    _, got = costs(tmp_path, config)
    attention, router = 2 * 64 * 64 + 2 * 64 * 32, 8 * 64
    experts = 8 * 3 * 64 * 160
    dense = attention + router + NORMS
    used = (1 - 0.75**4) * experts
    assert got.target_bytes == pytest.approx(2 * (6 * (dense + used) + 64 + 5000 * 64))
    assert got.layer_bytes == pytest.approx(2 * (dense + experts / 4 + 2 * 64 * 64))


def test_the_kinds_of_drafts(tmp_path) -> None:
    target = tmp_path / "target.json"
    target.write_text(json.dumps({**LLAMA, "vocab_size": 9000}))
    beside = {"target": str(target)}
    kind, got = costs(tmp_path, {**LLAMA, "num_hidden_layers": 1}, **beside)
    assert kind == "a draft model"
    assert got.layer_bytes == 2 * (LAYER + 64)
    assert got.target_bytes == 2 * (6 * LAYER + 64 + 9000 * 64)
    eagle3 = {
        **LLAMA, "num_hidden_layers": 1, "draft_vocab_size": 700,
        "architectures": ["LlamaForCausalLMEagle3"],
    }  # fmt: skip
    kind, got = costs(tmp_path, eagle3, **beside)
    assert (kind, got.num_rows) == ("an EAGLE-3 draft", 700)
    assert got.layer_bytes == 2 * (LAYER + 3 * 64 * 64)
    speculators = {
        "speculators_model_type": "eagle3", "draft_vocab_size": 700,
        "transformer_layer_config": {**LLAMA, "num_hidden_layers": 1},
    }  # fmt: skip
    assert costs(tmp_path, speculators, **beside)[1] == got
    with pytest.raises(ValueError, match="--target: expected MODEL beside an EAGLE-3 draft"):
        costs(tmp_path, eagle3)
    mtp = {**LLAMA, "num_nextn_predict_layers": 1}
    assert costs(tmp_path, mtp)[0] == "its own MTP module"
    inside = {"model_type": "gemma3", "text_config": {**LLAMA}, "vision_config": {"depth": 3}}
    assert costs(tmp_path, inside)[1] == costs(tmp_path, LLAMA)[1]
    with pytest.raises(ValueError, match="model_type 'unknown'"):
        costs(tmp_path, {"model_type": "unknown"})


def test_the_sentence_for_a_config(tmp_path, capsys) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**LLAMA, "vocab_size": 250_000}))
    assert main(["info", "--advise", str(path), "--drafts", "4", "--requests", "2"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{path}, an EAGLE draft: K = ") and out.count("\n") == 1
    assert "of 250000 rows: a step of 4 drafts and 2 requests reads" in out


def test_known_models_are_those_of_their_shapes() -> None:
    """A layer of bench.harness.models without fc, times the layers, is the table's."""
    for name, (_, dim, _, parameters) in model_costs.KNOWN.items():
        products = models.MODELS[name].draft_products()[1:]
        assert parameters == sum(rows * columns for rows, columns in products), name
        assert dim == models.MODELS[name].dim


def test_the_shapes_are_those_that_are_measured() -> None:
    shapes = {model.name: (model.vocab_size, model.dim) for model in models.MODELS.values()}
    assert shapes == advise.SHAPES
