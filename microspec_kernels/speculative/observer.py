"""What passes of the target show of the texts, as a policy takes it, for the head to learn."""

from collections.abc import Sequence

import torch
from torch import Tensor

from microspec_kernels.policy import Policy, Seen, Stage

from .heads import Head
from .models.target import CHUNK, CausalModel
from .request import Request
from .tree import Tree
from .verify import Verified


class Observer:
    """Tells a head which tokens the policy takes of each pass.

    A head that learns nothing is told nothing, and nothing is computed for it.
    """

    def __init__(self, head: Head, policy: Policy) -> None:
        self.head = head
        self.policy = policy

    def best_in_prompt(self, target: CausalModel, hidden: Tensor, last: Tensor) -> Tensor:
        """`best` after each token of a prompt, int64 [P, t], from the logits [1, V] of the last.

        Only a policy that asks for more than those has them computed from hidden [P, D].
        """
        rows = self.policy.rows("prompt") if self.head.follows else "none"
        if rows == "all":
            logits = (target.logits(piece) for piece in torch.split(hidden, CHUNK))
            return torch.cat([self.best(piece, "prompt") for piece in logits])
        best = self.best(last, "prompt")
        return torch.cat((best.new_full((len(hidden) - 1, best.shape[1]), -1), best))

    def best(self, logits: Tensor, stage: Stage) -> Tensor:
        """The target's likeliest tokens, as many as the policy wants, int64 [.., t]."""
        count = self.policy.best(stage) if self.head.follows else 0
        return logits.topk(min(count, logits.shape[-1])).indices

    def begin(self, request: Request, prompt: Tensor, best: Tensor, first: Tensor) -> None:
        """A text begins with a prompt int64 [P] and the first token int64 [1] after it."""
        if self.head.groups > 1:
            self.head.reset(request.group)
        self.policy.reset()
        chosen = torch.full_like(prompt, -1)
        chosen[-1:] = first
        self._tell([request], [Seen("prompt", prompt, best, chosen)])

    def step(
        self, requests: Sequence[Request], tree: Tree, best: Tensor, verified: Verified
    ) -> None:
        """The trees of the texts were verified; best int64 [B, n, t] follows each node."""
        batch, behind = tree.tokens.shape  # the place of a path's pads
        chosen = tree.tokens.new_full((batch, behind + 1), -1)
        paths = verified.paths.where(verified.paths >= 0, behind)
        chosen.scatter_(1, paths, verified.tokens)
        shown = [
            Seen("step", tree.tokens[text, :size], best[text, :size], chosen[text, :size])
            for text, size in enumerate(tree.sizes)
        ]
        self._tell(requests, shown)

    def _tell(self, requests: Sequence[Request], shown: Sequence[Seen]) -> None:
        if self.head.follows:
            tokens = [self.policy.take(one) for one in shown]
            groups = [
                torch.full_like(own, request.group)
                for own, request in zip(tokens, requests, strict=True)
            ]
            self.head.observe(torch.cat(tokens), torch.cat(groups))
