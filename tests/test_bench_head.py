# SPDX-License-Identifier: Apache-2.0
"""The head's benchmark: every arm agrees with the reference, and a wrong arm is not timed."""

import csv
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import microspec_kernels as mk
from bench.harness import cuda_graphs, models, supported
from bench.harness.head_check import HeadArm, check, serving_backend, validate
from bench.harness.inputs import id_sets, make_weight, quantise_nvfp4
from bench.ops import head, head_peers, time_head
from bench.ops.head_arms import arms_for
from bench.ops.head_peers import PADDED, padded
from bench.ops.time_head import GraphTiming
from microspec_kernels import reference
from microspec_kernels._checks import E2M1

QUANTISED = (torch.int8, torch.float8_e4m3fn, torch.uint8, E2M1)


@pytest.fixture(scope="module")
def weight() -> Tensor:
    return make_weight(models.TOY.vocab_size, models.TOY.dim)


def arms(weight: Tensor, rows: int, softcap: float = 0.0) -> tuple[dict[str, HeadArm], Tensor]:
    hidden = torch.randn(rows, weight.size(1)).bfloat16()
    sets = id_sets(len(weight), 300, 3)
    return arms_for(weight, sets, hidden, QUANTISED, softcap), hidden


@pytest.mark.parametrize("softcap", [0.0, 3.0])
@pytest.mark.parametrize("rows", [1, 4, 60])
def test_every_arm_agrees_with_the_reference(weight: Tensor, rows: int, softcap: float) -> None:
    every_arm, hidden = arms(weight, rows, softcap)
    assert {"sparse_head indexed", "sparse_head packed fp8", "NanoSpec", "static 32k"} < set(
        every_arm
    )
    validate(every_arm, hidden)


def test_bytes_are_those_of_the_rows_and_their_scales(weight: Tensor) -> None:
    every_arm, _ = arms(weight, 1)
    vocab_size, dim, k = models.TOY.vocab_size, models.TOY.dim, 300
    names = ("sparse_head indexed", "sparse_head packed", "NanoSpec")
    least = dict.fromkeys(names, k * dim * 2)
    least |= dict.fromkeys(("sparse_head packed fp8", "sparse_head packed int8"), k * (dim + 4))
    least |= dict.fromkeys(
        ("sparse_head packed int4", "sparse_head packed nvfp4"), k * dim * 9 // 16
    )
    least["dense, eager"] = least["static 32k"] = vocab_size * dim * 2
    assert {name: every_arm[name].bytes for name in least} == least


def test_nvfp4_rows_are_the_nearest() -> None:
    """No code would come nearer than half a step of e2m1; the sign and the largest stay."""
    rows = torch.randn(6, 64)
    rows[0, :16] = 0
    codes, scale = quantise_nvfp4(rows)
    assert codes.dtype == E2M1 and scale.dtype == torch.float8_e4m3fn and scale.shape == (6, 4)
    columns = reference.e2m1_columns(codes)
    step = torch.where(columns.abs() >= 4, 2.0, torch.where(columns.abs() >= 2, 1.0, 0.5))
    scales = scale.float().repeat_interleave(16, 1)
    # A scale is rounded, so the largest value of a group may pass 6 by a sixteenth.
    assert ((columns * scales - rows).abs() <= (0.5 * step + 0.375) * scales).all()
    assert (columns * rows >= 0).all()


def test_the_types_that_the_head_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The op decides, because a GPU may run code for an older one, which has no fp8."""
    assert supported.quantised() == (torch.float8_e4m3fn, torch.int8)

    def without_fp8(hidden: Tensor, rows: Tensor, *operands: Any, **options: Any) -> None:
        if rows.dtype == torch.float8_e4m3fn:
            raise ValueError("compiled for sm_80")

    monkeypatch.setattr(supported, "sparse_head", without_fp8)
    assert supported.quantised() == (torch.int8,)


def test_static_is_a_part_of_a_large_vocabulary(
    weight: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head_peers, "STATIC", 1000)
    every_arm, hidden = arms(weight, 2)
    statics = {name: arm for name, arm in every_arm.items() if name.startswith("static")}
    validate(statics, hidden)
    for arm in statics.values():
        assert arm.bytes == 1000 * models.TOY.dim * 2
        assert len(arm.operands["active_ids"].unique()) == 1000


@pytest.mark.parametrize("name", ["sparse_head packed", "NanoSpec", "dense linear"])
@pytest.mark.parametrize("wrong", ["id", "value", "nan", "last row", "twice"])
def test_a_wrong_arm_is_refused(weight: Tensor, name: str, wrong: str) -> None:
    every_arm, hidden = arms(weight, 4)
    arm = next(arm for label, arm in every_arm.items() if label.startswith(name))
    value, tokens, *rest = (tensor.clone() for tensor in arm.call())
    check(name, arm, hidden, (value, tokens, *rest))
    if wrong == "id":
        tokens[0, 3] = 3999 if 3999 not in tokens[0] else 3998
    elif wrong == "twice":
        tokens[0, 1], value[0, 1] = tokens[0, 0], value[0, 0]
    elif wrong == "last row":
        value[3], tokens[3] = value[1].clone(), tokens[1].clone()
    else:
        value[0, 5] += 1 if wrong == "value" else torch.nan
    with pytest.raises(AssertionError, match=name):
        check(name, arm, hidden, (value, tokens, *rest))


def test_padding_leaves_the_rows() -> None:
    hidden = torch.randn(10, 8)
    assert padded(hidden).shape == (PADDED, 8)
    assert torch.equal(padded(hidden)[:10], hidden)
    assert padded(hidden.repeat(8, 1)).shape == (80, 8)


def test_a_backend_serves_only_inside() -> None:
    before = mk.backend()
    with pytest.raises(KeyError), serving_backend("reference"):
        assert mk.backend() == "reference"
        raise KeyError
    assert mk.backend() == before


def test_what_is_measured() -> None:
    every = head.plan("cuda")
    assert [model.name for model in every] == list(models.MODELS)
    first, *others = every.values()
    assert {m for _, m in first} == set(head.ROWS)
    assert {k for k, _ in first} == set(head.CAPACITIES)
    assert all(shapes == [(3072, 1), (3072, 10)] for shapes in others)
    named = head.plan("cuda", "Qwen3-8B", "all", "1,60")
    assert [len(shapes) for shapes in named.values()] == [8]
    assert list(head.plan("cpu")) == [models.MODELS[models.DEFAULT]]
    with pytest.raises(ValueError, match=r"GPT-9.*Llama"):
        head.plan("cuda", "GPT-9")


def test_draft_layer_bytes_are_those_of_the_papers_model() -> None:
    products = models.MODELS["Llama-3.1-8B"].draft_products()
    assert sum(out * size for out, size in products) * 2 == pytest.approx(503e6, rel=1e-3)


def test_the_gpu_path_runs_without_one() -> None:
    """Every situation and arm runs; in situ, the layer's own time is subtracted."""
    rows = time_head.measure(models.TOY, [(300, 4)], 2, GraphTiming, device="cpu")
    assert {row["situation"] for row in rows} == set(GraphTiming.situations)
    in_situ = [row["arm"] for row in rows if row["situation"] == "in situ"]
    assert time_head.LAYER not in in_situ
    assert "dense, eager" in in_situ
    assert all(row["model"] == "toy" and row["bytes"] > 0 for row in rows)


@pytest.mark.parametrize(("situation", "several"), [("cold", True), ("warm", False)])
def test_cold_goes_round_through_more_than_the_cache_and_warm_does_not(
    situation: str, several: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, capacity, used = 200_000, 300, []

    def noted(weight: Tensor, sets: list[Tensor], *arguments: Any, **options: Any) -> Any:
        used.append(sets)
        return arms_for(weight, sets, *arguments, **options)

    monkeypatch.setattr(cuda_graphs, "l2_bytes", lambda: cache)
    monkeypatch.setattr(time_head, "arms_for", noted)
    time_head.measure(
        models.TOY, [(capacity, 1)], 1, GraphTiming, ["packed"], [situation], device="cpu"
    )
    (sets,) = used
    assert len({tuple(ids.tolist()) for ids in sets}) == len(sets)
    # The smallest of the arms' rows has 8 bits per element.
    assert (len(sets) * capacity * models.TOY.dim > 3 * cache) == several
    assert several or len(sets) == 1


def test_differences_are_taken_round_by_round() -> None:
    """If the machine slows down in the second round, the differences stay the same."""
    found = cuda_graphs.difference([3.0, 13.0, 4.0], [2.0, 12.0, 2.0])
    assert (found.p20, found.p50, found.p80) == (1.0, 1.0, 2.0)


def test_a_quick_run_writes_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words: list[Any] = ["head", "--quick", "--out", tmp_path, "--arms", "sparse,NanoSpec"]
    monkeypatch.setattr(sys, "argv", list(map(str, words)))
    monkeypatch.setenv("MICROSPEC_COMMIT", "1234567")
    head.main()
    rows = list(csv.DictReader((tmp_path / "head.csv").open()))
    assert {row["arm"].split()[0] for row in rows} == {"sparse_head", "NanoSpec"}
    assert {"p20_us", "p50_us", "p80_us", "device", "commit"} < set(rows[0])
    assert {row["commit"] for row in rows} == {"1234567"}
    for row in rows:
        took, floor, read = (float(row[name]) for name in ("p50_us", "floor_us", "read_GBps"))
        assert floor == pytest.approx(float(row["bytes"]) / read / 1e3, rel=1e-4)
        assert float(row["over_floor"]) == pytest.approx(took / floor, rel=1e-4)


def test_figures_of_other_models_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The new run has another column, and replaces all figures of its model."""
    file = tmp_path / "head.csv"
    toy = models.TOY.name
    file.write_text(
        f"model,arm,p50_us,host,commit\nlarge,dense,7,here,old\n{toy},dense,8,here,old\n"
    )
    words: list[Any] = ["head", "--quick", "--out", tmp_path, "--arms", "packed int8"]
    monkeypatch.setattr(sys, "argv", list(map(str, words)))
    for _ in range(2):
        head.main()
        first, *rest = csv.DictReader(file.open())
        known = {"model": "large", "arm": "dense", "p50_us": "7", "host": "here", "commit": "old"}
        assert first == {**dict.fromkeys(first, ""), **known}
        assert rest and {(row["model"], row["host"]) for row in rest} == {(toy, "")}
        assert "old" not in {row["commit"] for row in rest}


def test_models_are_told_apart() -> None:
    """Sizes of one kind differ between models, so that a mix-up shows."""
    for name in ("vocab_size", "dim", "inner", "head_dim"):
        assert len({getattr(model, name) for model in models.MODELS.values()}) > 2, name
