# SPDX-License-Identifier: Apache-2.0
"""How much of a step's bytes the LM head of a draft is, by kind of draft, computed from shapes.

    python -m bench.tuning.draft_worth

At small batches the bytes of weights that a step reads set its time. This counts them for one
request without KV caches: the target once over its text's next token and the drafts, and the draft
model once for each draft. Nothing is measured. The tables of README.md and docs/engines.md are
printed from here.
"""

from dataclasses import dataclass

from microspec_kernels.policy import StepCosts
from microspec_kernels.policy.model_bytes import Weights

ACTIVE = 3072  # K
BF16, FP8, MXFP4 = 2.0, 1.0, 0.53125  # bytes of a weight; MXFP4 with a byte for each 32


@dataclass(frozen=True)
class Case:
    """A draft and its target.

    Attributes:
        name: kind of the draft, as users call it.
        target: the target's name.
        drafts: drafts a step.
        body: the target without its LM head.
        target_head: bytes of its LM head.
        draft: the draft model without its LM head, for one draft.
        once: bytes that the draft reads once a step.
        rows, dim: shape of the draft's LM head, in bf16.
        advice: what to expect.
    """

    name: str
    target: str
    drafts: int
    body: Weights
    target_head: float
    draft: Weights
    rows: int
    dim: int
    advice: str
    once: float = 0.0

    @property
    def costs(self) -> StepCosts:
        """Return the costs of a step of one request."""
        target = self.body.read_by(self.drafts + 1) + self.target_head + self.once
        row = self.dim * BF16
        return StepCosts(target, self.draft.read_by(1), row, self.rows, self.drafts)

    @property
    def head(self) -> float:
        """Return the bytes that the draft's whole LM head is of a step."""
        return self.dense - self.costs.bytes(0)

    @property
    def dense(self) -> float:
        """Return the bytes of a step with the draft's whole LM head."""
        return self.costs.bytes(self.rows)

    def active(self, capacity: int = ACTIVE) -> float:
        """Return the bytes of a step with `capacity` rows of it."""
        return self.costs.bytes(min(capacity, self.rows))


def layer(dim: int, inner: int, queries: int, keys: int, inputs: int = 1) -> int:
    """Return the weights of a decoder layer whose attention reads `inputs` times its width."""
    return inputs * dim * (queries + 2 * keys) + queries * dim + 3 * dim * inner


# Sizes of each model's config.json; transformers' default configurations have those of Qwen3.5-9B,
# gpt-oss-120b and DeepSeek-V3. Norms, routers and biases are left out.
_LLAMA = Weights(32 * layer(4096, 14336, 4096, 1024) * BF16)
_LLAMA_HEAD = 128256 * 4096 * BF16
_EAGLE3 = Weights(layer(4096, 14336, 4096, 1024, inputs=2) * BF16)
_QWEN_FULL = layer(4096, 12288, 4096, 1024) + 4096 * 4096  # a gate as wide as the queries
_QWEN_LINEAR = 4096 * (2 * 2048 + 2 * 4096) + 4096 * 4096 + 3 * 4096 * 12288
_GPT_OSS = Weights(
    36 * (2880 * (4096 + 2 * 512) + 4096 * 2880) * BF16, 36 * 128 * 3 * 2880**2 * MXFP4, 4 / 128
)
_MLA = 7168 * (1536 + 576) + 1536 * 128 * 192 + 512 * 128 * 256 + 128 * 128 * 7168
_EXPERT = 3 * 7168 * 2048
_DEEPSEEK = Weights(
    (61 * _MLA + 3 * 3 * 7168 * 18432 + 58 * _EXPERT) * FP8, 58 * 256 * _EXPERT * FP8, 8 / 256
)
_DEEPSEEK_MTP = Weights((2 * 7168**2 + _MLA + _EXPERT) * FP8, 256 * _EXPERT * FP8, 8 / 256)

LLAMA = "Llama-3.1-8B, bf16"
CASES = (
    Case(
        "Qwen3.5 MTP", "Qwen3.5-9B, bf16", 3, Weights((24 * _QWEN_LINEAR + 8 * _QWEN_FULL) * BF16),
        248320 * 4096 * BF16, Weights((2 * 4096**2 + _QWEN_FULL) * BF16), 248320, 4096,
        "gains most: the head is four fifths of the draft",
    ),
    Case(
        "gpt-oss EAGLE-3 (all of V)", "gpt-oss-120b, MXFP4", 3, _GPT_OSS, 201088 * 2880 * BF16,
        Weights(layer(2880, 17280, 4096, 512, inputs=2) * BF16), 201088, 2880,
        "gains most; in larger batches the target reads more experts",
        once=3 * 2880**2 * BF16,
    ),
    Case(
        "EAGLE-1 or 2", LLAMA, 5, _LLAMA, _LLAMA_HEAD,
        Weights((2 * 4096**2 + layer(4096, 14336, 4096, 1024)) * BF16), 128256, 4096,
        "gains most: the head is two thirds of the draft",
    ),
    Case(
        "EAGLE-3 without `d2t` (all of V)", LLAMA, 5, _LLAMA, _LLAMA_HEAD, _EAGLE3, 128256, 4096,
        "gains most: the head is two thirds of the draft", once=3 * 4096**2 * BF16,
    ),
    Case(
        "a standalone model (Llama-3.2-1B)", LLAMA, 5, _LLAMA, _LLAMA_HEAD,
        Weights(16 * layer(2048, 8192, 2048, 512) * BF16), 128256, 2048,
        "gains: the draft's layers weigh more",
    ),
    Case(
        "EAGLE-3 with its own 32k rows (`d2t`)", LLAMA, 5, _LLAMA, _LLAMA_HEAD, _EAGLE3, 32000,
        4096, "gains little: most bytes are gone already", once=3 * 4096**2 * BF16,
    ),
    Case(
        "DeepSeek-V3 MTP", "DeepSeek-V3, FP8", 1, _DEEPSEEK, 129280 * 7168 * BF16, _DEEPSEEK_MTP,
        129280, 7168, "gains little: one draft beside a large target",
    ),
)  # fmt: skip


def table(cases: tuple[Case, ...] = CASES) -> list[str]:
    """Return the table of docs/engines.md in Markdown."""
    lines = [
        "| draft | target | drafts a step | rows of its head | its share of a step "
        f"| bytes a step: dense | {ACTIVE} active (K) | | tokens/s, at most | what to expect |",
        "|---" * 10 + "|",
    ]
    for case in cases:
        saved = 1 - case.active() / case.dense
        lines.append(
            f"| {case.name} | {case.target} | {case.drafts} | {case.rows} "
            f"| {100 * case.head / case.dense:.0f} % | {case.dense / 1e9:.1f} GB "
            f"| {case.active() / 1e9:.1f} GB | \N{MINUS SIGN}{100 * saved:.0f} % "
            f"| +{100 / (1 - saved) - 100:.0f} % | {case.advice} |"
        )
    return [*lines, "| n-gram, suffix | | | none | | | | | | gains nothing: there is no head |"]


def short_table(cases: tuple[Case, ...] = CASES) -> list[str]:
    """Return the table of README.md in Markdown."""
    lines = [
        "| your draft, its target | rows of its head | bytes a step: dense "
        f"| {ACTIVE} active (K) | | what to expect |",
        "|---" * 6 + "|",
    ]
    for case in cases:
        saved = 1 - case.active() / case.dense
        lines.append(
            f"| {case.name}, {case.target.split(',')[0]} | {case.rows} | {case.dense / 1e9:.1f} GB "
            f"| {case.active() / 1e9:.1f} GB | \N{MINUS SIGN}{100 * saved:.0f} % | {case.advice} |"
        )
    return [*lines, "| n-gram, suffix | none | | | | gains nothing: there is no head |"]


def main() -> None:
    """Print the tables."""
    print("\n".join([*table(), "", *short_table()]))


if __name__ == "__main__":
    main()
