# SPDX-License-Identifier: Apache-2.0
"""Feed the policy's tokens from each pass of the target to the draft's head."""

import torch
from torch import Tensor

from microspec_kernels.policy import Policy, Stage, TargetPass

from .heads import Head
from .learning import Learning
from .models.target import CHUNK, CausalModel
from .ranking import likeliest
from .request import Request
from .tree import Tree
from .verify import Verified


class Observer:
    """The link from the target's passes to a head: it observes the tokens that the policy selects.

    For a head that does not follow the text (`Head.follows`), it selects and computes nothing.
    `learning`: what fills the head's vocabulary when a text begins; None: what the head resets to.
    """

    def __init__(self, head: Head, policy: Policy, learning: Learning | None = None) -> None:
        self.head = head
        self.policy = policy
        self.learning = learning

    def target_top_k_of_prompt(self, target: CausalModel, hidden: Tensor, last: Tensor) -> Tensor:
        """Return the target's likeliest tokens after each token of a prompt, int64 [P, t].

        The last row comes from the logits `last` [1, V]. The other rows are computed from hidden
        [P, D] only if the policy asks for all rows; otherwise they are -1.
        """
        rows = self.policy.prompt_rows if self.head.follows else "none"
        if rows == "all":
            logits = (target.logits(piece) for piece in torch.split(hidden, CHUNK))
            return torch.cat([self.target_top_k(piece, "prompt") for piece in logits])
        top_tokens = self.target_top_k(last, "prompt")
        return torch.cat(
            (top_tokens.new_full((len(hidden) - 1, top_tokens.shape[1]), -1), top_tokens)
        )

    def target_top_k(self, logits: Tensor, stage: Stage) -> Tensor:
        """Return the target's t likeliest tokens that the policy wants, int64 [.., t]."""
        count = self.policy.target_top_k(stage) if self.head.follows else 0
        if count == 0:
            return torch.empty(*logits.shape[:-1], 0, dtype=torch.int64, device=logits.device)
        return likeliest(logits, min(count, logits.shape[-1]))

    def begin(self, request: Request, prompt: Tensor, top_tokens: Tensor, first: Tensor) -> None:
        """Begin a text with a prompt int64 [P] and the first token int64 [1] after it."""
        if self.learning is not None:
            self.learning.begin(request.number, prompt)
        elif self.head.num_groups > 1:
            self.head.reset(request.group)
        chosen = torch.full_like(prompt, -1)
        chosen[-1:] = first
        if not self.head.follows:
            return
        tokens = self.policy.select(TargetPass("prompt", prompt, top_tokens, chosen))
        if self.learning is not None:
            tokens = self.learning.of_prompt(tokens)
        self.head.observe(tokens, torch.full_like(tokens, request.group))

    def end(self, request: Request) -> None:
        """Count the text of a request that ended."""
        if self.learning is not None:
            self.learning.end(request.number, request.tokens)

    def step(self, text_groups: Tensor, tree: Tree, top_tokens: Tensor, verified: Verified) -> None:
        """Observe the verified trees of the texts; top_tokens int64 [B, n, t] follow each node.

        text_groups: int64 [B], each text's vocabulary in the head.
        """
        if not self.head.follows:
            return
        top_tokens = top_tokens.masked_fill((tree.tokens < 0)[:, :, None], -1)
        parts = zip(tree.tokens, top_tokens, verified.chosen, strict=True)
        selected = [self.policy.select(TargetPass("step", *part)) for part in parts]
        tokens = torch.stack(selected) if len(selected) > 1 else selected[0][None]
        token_groups = text_groups[:, None].expand_as(tokens)
        self.head.observe(tokens.flatten(), token_groups.flatten())
