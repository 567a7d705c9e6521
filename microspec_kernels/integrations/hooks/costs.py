# SPDX-License-Identifier: Apache-2.0
"""What a step of an engine reads, from the models that it has loaded."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from microspec_kernels.policy import StepCosts
from microspec_kernels.policy.model_bytes import weights_of

HEAD, EMBEDDING = "lm_head", "embed_tokens"  # in the names of both engines' parameters
# Requests that are assumed until some have run: K is chosen again for those that run.
FEW = 8


def step_costs(
    target: nn.Module,
    draft: nn.Module,
    config: Mapping[str, Any],
    *,
    weight: Tensor,
    scale: Tensor | None,
    num_rows: int,
    num_drafts: int,
    max_requests: int,
) -> StepCosts:
    """Return what this rank reads in a step.

    Args:
        target, draft: the models. Their input embeddings are read by the row, so they do not count;
            the draft's LM head counts apart.
        config: fields of the target's config, for the experts that a token uses.
        weight, scale: this rank's rows of the draft's LM head, and their scales.
        num_rows: rows of all ranks.
        num_drafts: drafted tokens of a step.
        max_requests: the most requests that run at a time.
    """
    requests = min(FEW, max_requests)
    rows = [weight] if scale is None else [weight, scale]
    row_bytes = sum(part.numel() * part.element_size() for part in rows)
    own_head = any(HEAD in name for name, _ in target.named_parameters())  # or the embedding is it
    verified = weights_of(target, config, skips=lambda name, _: own_head and EMBEDDING in name)
    drafted = weights_of(draft, config, skips=lambda name, _: HEAD in name or EMBEDDING in name)
    return StepCosts(
        target_bytes=verified.read_by(requests * (num_drafts + 1)),
        layer_bytes=drafted.read_by(requests),
        row_bytes=row_bytes / num_rows,
        num_rows=num_rows,
        num_drafts=num_drafts,
        num_requests=requests,
    )
