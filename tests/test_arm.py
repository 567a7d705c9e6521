# SPDX-License-Identifier: Apache-2.0
"""The CPU kernels for Arm in an emulator: their choice, every remainder, every value.

The op tests run over them too, as backends ``arm-…``. The driver places all memory that a call
reads before an inaccessible page, so each test also detects reads past the end.
"""

import itertools
import subprocess

import arm_ops
import isa_worker
import pytest
import torch
from backends_under_test import NO_ARM
from compare import assert_bitwise, logits_in
from generators import FLOATS, QUANTISED, head_case

from microspec_kernels import sparse_head, sparse_logits

pytestmark = [
    pytest.mark.arm,
    pytest.mark.skipif(arm_ops.tools_are_missing(), reason=NO_ARM),
]
EVERY = pytest.mark.backends("arm-neon", "arm-neonbf16", "arm-portable")


def choice(processor: str, isa: str | None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        arm_ops.command(processor, "isa"),
        env=arm_ops.environment(isa),
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("processor", "isas"),
    [
        ("cortex-a72", ["neon", "portable"]),
        ("neoverse-n1", ["neon", "portable"]),  # has int8 dot products, but no bf16
        ("max", ["neonbf16", "neon", "portable"]),
    ],
)
def test_the_best_set_of_the_processor_is_chosen(processor: str, isas: list[str]) -> None:
    assert choice(processor, None).stdout == isas[0] + "\n"
    for isa in isas:
        assert choice(processor, isa).stdout == isa + "\n"
    for isa in {"neonbf16", "avx2", "abacus"} - set(isas):
        refused = choice(processor, isa)
        assert refused.returncode == 1
        assert refused.stderr.strip() == (
            "driver: ValueError: microspec: MICROSPEC_ISA: expected one of "
            f"{', '.join(isas)}, got {isa}"
        )


@EVERY
def test_every_remainder_against_float64() -> None:
    shapes = len(FLOATS) * len(isa_worker.DIMS) * len(isa_worker.BATCHES)
    assert isa_worker.against_float64() == 3 * shapes  # and as many of each kind of 4-bit rows


@EVERY
@pytest.mark.parametrize("hidden", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("weight_dtype", QUANTISED, ids=str)
def test_every_quantised_value(weight_dtype: torch.dtype, hidden: torch.dtype) -> None:
    assert isa_worker.every_value(weight_dtype, hidden) == 256


@EVERY
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_half(dtype: torch.dtype) -> None:
    assert isa_worker.every_value(dtype, dtype) == 65536


# Lengths around one chunk of widened elements and several, between which the result holds sums.
@EVERY
@pytest.mark.parametrize("dim", [255, 256, 257, 264, 511, 512, 777])
@pytest.mark.parametrize("weight_dtype", QUANTISED, ids=str)
def test_rows_of_several_chunks(weight_dtype: torch.dtype, dim: int) -> None:
    """Small integers make the sums exact, so a lost or repeated element shows."""
    for m in (1, 2, 3, 8, 9, 17):
        case = head_case(
            m,
            m=m,
            dim=dim,
            active=19,
            dtype=torch.bfloat16,
            weight_dtype=weight_dtype,
            gap=m % 2,
            exact=True,
        )
        z = sparse_logits(*case.tensors(), **case.options())
        want = logits_in(case, torch.float64).float()
        assert_bitwise(z + 0.0, want + 0.0, f"M {m}")


@EVERY
@pytest.mark.parametrize(
    ("dtype", "weight_dtype"), [(d, r) for d in FLOATS for r in (d, *QUANTISED)], ids=str
)
def test_a_row_does_not_know_its_batch(dtype: torch.dtype, weight_dtype: torch.dtype) -> None:
    """A row's result also does not depend on its place in a pair of activations."""
    case = head_case(
        22, m=17, dim=77, vocab_size=60, capacity=40, dtype=dtype, weight_dtype=weight_dtype
    )
    whole = sparse_head(*case.tensors(), 10, **case.options())
    for first, last in [
        (0, 1),
        (1, 2),
        (16, 17),
        (3, 5),
        (2, 9),
        (1, 17),
        *itertools.pairwise(range(5)),
    ]:
        part = case.changed(hidden=case.hidden[first:last])
        got = sparse_head(*part.tensors(), 10, **part.options())
        for one, other in zip(got, whole, strict=True):
            assert_bitwise(one, other[first:last], f"rows {first} to {last}")
