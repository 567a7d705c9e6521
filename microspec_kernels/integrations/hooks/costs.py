# SPDX-License-Identifier: Apache-2.0
"""What a step of an engine reads, from the models that it has loaded, and whether K can win."""

from collections.abc import Mapping
from logging import Logger
from typing import Any

from torch import Tensor, nn

from microspec_kernels.engine import Settings
from microspec_kernels.engine.slots import costs_of_head
from microspec_kernels.policy import StepCosts, choose_capacity, explain
from microspec_kernels.policy.model_bytes import weights_of

HEAD, EMBEDDING = "lm_head", "embed_tokens"  # in the names of both engines' parameters
# Requests that are assumed until some have run: K is chosen again for those that run.
FEW = 8


def step_costs(
    target: nn.Module,
    draft: nn.Module,
    config: Mapping[str, Any],
    *,
    row_bytes: float,
    num_rows: int,
    num_drafts: int,
    max_requests: int,
) -> StepCosts:
    """Return what this rank reads in a step.

    Args:
        target, draft: the models. Their input embeddings are read by the row, so they do not count;
            the draft's LM head counts apart.
        config: fields of the target's config, for the experts that a token uses.
        row_bytes: what this rank reads of a row of the draft's LM head, on the average.
        num_rows: rows of all ranks.
        num_drafts: drafted tokens of a step.
        max_requests: the most requests that run at a time.
    """
    requests = min(FEW, max_requests)
    own_head = any(HEAD in name for name, _ in target.named_parameters())  # or the embedding is it
    verified = weights_of(target, config, skips=lambda name, _: own_head and EMBEDDING in name)
    drafted = weights_of(draft, config, skips=lambda name, _: HEAD in name or EMBEDDING in name)
    return StepCosts(
        target_bytes=verified.read_by(requests * (num_drafts + 1)),
        layer_bytes=drafted.read_by(requests),
        row_bytes=row_bytes,
        num_rows=num_rows,
        num_drafts=num_drafts,
        num_requests=requests,
    )


def can_win(settings: Settings, costs: StepCosts, weight: Tensor, logger: Logger) -> bool:
    """Return whether an active vocabulary can be faster than the whole LM head, and log why.

    A number as `capacity` switches it on in any case.

    Args:
        settings: the user's settings.
        costs: what a step reads.
        weight: the draft's LM head.
        logger: a logger that the engine shows.
    """
    if settings.capacity != "auto":
        return True
    costs = costs_of_head(costs, settings, weight, shared=settings.vocabulary == "shared")
    choice = choose_capacity(costs)
    if choice.speedup > 1:
        logger.info("MicroSpec: %s", explain(costs, choice))
        return True
    stays_off = "MicroSpec stays off: %s. A number as capacity switches it on"
    logger.info(stays_off, explain(costs, choice))
    return False
