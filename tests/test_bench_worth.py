# SPDX-License-Identifier: Apache-2.0
"""bench/tuning/draft_worth.py: the tables that say which drafts gain."""

from pathlib import Path

import pytest

from bench.tuning import draft_worth
from bench.tuning.draft_worth import CASES, Case
from microspec_kernels.policy.model_bytes import Weights

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("page", "lines"),
    [
        ("README.md", draft_worth.short_table()),
        ("docs/engines.md", draft_worth.table()),
    ],
)
def test_the_pages_show_the_tables_as_computed(page: str, lines: list[str]) -> None:
    assert "\n".join(lines) in (ROOT / page).read_text(encoding="utf-8")


def test_a_small_case_by_hand() -> None:
    """Two drafts: three tokens go through the target."""
    body = Weights(100.0, 2 * 4 * 8.0, 1 / 4)
    case = Case("", "", 2, body, 50.0, Weights(10.0), rows=30, dim=5, advice="", once=3.0)
    experts = 2 * 4 * (1 - 0.75**3) * 8.0
    assert case.head == 2 * 30 * 5 * 2
    assert case.dense == pytest.approx(100 + experts + 50 + 3 + 2 * 10 + 600)
    assert case.active(3) == pytest.approx(case.dense - 540)
    assert case.active(31) == case.active(30) == pytest.approx(case.dense)


def test_experts() -> None:
    experts = Weights(0.0, 128 * 2.0, 4 / 128)
    assert experts.read_by(1) == pytest.approx(8.0)
    assert 8.0 < experts.read_by(2) < 16.0
    assert experts.read_by(10**6) == pytest.approx(256.0)


@pytest.mark.parametrize(
    ("target", "billions", "weight", "embedding"),
    [
        ("Llama-3.1-8B, bf16", 8.03, 2.0, 128256 * 4096),
        ("Qwen3.5-9B, bf16", 9.0, 2.0, 248320 * 4096),
        ("gpt-oss-120b, MXFP4", 116.8, None, 201088 * 2880),
        ("DeepSeek-V3, FP8", 671.0, 1.0, 129280 * 7168),
    ],
)
def test_the_targets_have_their_published_sizes(
    target: str, billions: float, weight: float | None, embedding: int
) -> None:
    """With all experts, and the embedding, which a step does not read."""
    case = next(case for case in CASES if case.target == target)
    weights = 2 * embedding
    if weight is None:  # attention in bf16, experts in MXFP4
        weights += case.body.dense / 2.0 + case.body.experts / draft_worth.MXFP4
    else:
        weights += (case.body.dense + case.body.experts) / weight
    assert weights / 1e9 == pytest.approx(billions, rel=0.02)
