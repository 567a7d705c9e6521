# SPDX-License-Identifier: Apache-2.0
"""Draw loss.png from the curves that the two trainings wrote."""

import argparse
import csv
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent


def read(path: Path) -> dict[str, list[float]]:
    """Return the columns of a curve."""
    with path.open(newline="") as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    return {name: [row[name] for row in rows] for name in rows[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", type=Path, default=HERE / "loss_target.csv")
    parser.add_argument("--draft", type=Path, default=HERE / "loss_draft.csv")
    parser.add_argument("--out", type=Path, default=HERE / "loss.png")
    args = parser.parse_args()
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    target, draft = read(args.target), read(args.draft)
    millions = [tokens / 1e6 for tokens in target["tokens"]]
    left.plot(millions, target["sampled_loss"], label="sampled softmax, train")
    left.plot(millions, target["test_loss"], label="whole vocabulary, test")
    left.set(title="target", xlabel="million tokens", ylabel="loss (nats)")
    millions = [tokens / 1e6 for tokens in draft["tokens"]]
    for name, values in draft.items():
        if name.startswith("test_agreement_"):
            right.plot(millions, values, label=f"step {name[-1]} of drafting")
    right.set(title="draft: first choice is the target's, test", xlabel="million tokens")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(args.out, dpi=80)


if __name__ == "__main__":
    main()
