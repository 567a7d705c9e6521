"""The reference speculative loop: draft a tree, verify it in one pass, keep what was right."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from .checks import check_counts, check_fit, check_frequency, checked_prompt
from .draft import ModelDraft
from .extra import require
from .heads import Head, HeadName, make_head
from .model import CHUNK, CausalModel
from .sources import SOURCES, Seen, Source, take
from .stats import Clock, Generation, Stats
from .tree import TreeShape, grow


@torch.no_grad()
def generate(
    target: Any,
    draft: Any,
    input_ids: Tensor,
    max_new_tokens: int,
    *,
    head: HeadName | Head = "sparse",
    depth: int = 6,
    top_k: int = 10,
    tree_size: int = 60,
    capacity: int = 3072,
    frequency: Tensor | None = None,
    pinned: int | None = None,
    mode: Literal["indexed", "packed"] = "indexed",
    sources: Sequence[Source] = SOURCES,
    progress: bool = False,
) -> Generation:
    """Continue one text greedily, drafting with an EAGLE-2 tree (arXiv 2406.16858).

    The tokens are the target's own greedy choices whatever the draft, the head and the tree: they
    only decide how many of them one pass of the target yields. (In fp32. In fp16 and bf16 a pass
    over 61 rows rounds otherwise than 61 passes, which may turn an argmax at a near tie.) Of the
    target's generation config only the end-of-text ids count.

    target: `load_target`'s result or a Hugging Face causal LM (Llama, Mistral, Qwen2, Qwen3).
    draft: `load_draft`'s result, or such a model with the target's vocabulary.
    input_ids: int64 or int32 [P] or [1, P], P >= 1.
    max_new_tokens: how many tokens to add at most; end of text ends it sooner and is included.
    head: "dense" ranks the draft's next tokens over the vocabulary, "static" over the first
        `capacity` ids of `frequency`, "sparse" over an active vocabulary of `capacity` that
        follows `sources`. Or a `Head` of your own, which then keeps what it learned.
    depth, top_k, tree_size: calls of the head, rows and candidates in each, nodes verified.
    frequency: int64 or int32 [S], distinct token ids by falling frequency.
    pinned: how many of these the sparse head never evicts; by default a third of the capacity,
        and none without `frequency`.
    mode: whether the sparse head reads rows of the whole weight or packs them into a slab.
    sources: what the active vocabulary learns from.
    progress: show a bar.

    Raises TypeError or ValueError for anything else, naming the argument; ImportError where
    the `speculative` extra is missing.
    """
    target = target if isinstance(target, CausalModel) else CausalModel(target)
    draft = draft if hasattr(draft, "extend") else ModelDraft(draft)
    shape = TreeShape(depth, top_k, tree_size)
    prompt = checked_prompt(input_ids, target)
    check_counts(max_new_tokens, shape, capacity, pinned)
    check_fit(target, draft, len(prompt) + max_new_tokens + depth)
    if frequency is not None:
        check_frequency(frequency, target.vocab_size)
    if isinstance(head, str):
        weight, bias = draft.head_weight, draft.head_bias
        head = make_head(head, weight, bias, capacity, frequency, pinned, mode)
    elif not hasattr(head, "topk"):
        raise TypeError(f"generate: head: expected a name or a Head, got {type(head).__name__}")
    followed = [source for source in sources if head.follows]
    on_prompt = [source for source in followed if source.stage == "prompt"]
    on_step = [source for source in followed if source.stage == "step"]
    prompt_best = max((source.best for source in on_prompt), default=0)
    step_best = max((source.best for source in on_step), default=0)
    cache, draft_cache = target.new_cache(), draft.new_cache()
    stats = Stats()
    clock = Clock(target.device, stats.seconds)
    if max_new_tokens == 0:
        return Generation(prompt.new_zeros(0).cpu(), [], stats)

    bar = require("tqdm").tqdm(total=max_new_tokens, unit="tok", disable=not progress)
    with clock("total"), bar:
        with clock("prefill"):
            hidden = target.prefill(prompt, cache)
            # Only the vocabulary asks for more logits than those of the last row.
            rows = hidden if prompt_best else hidden[-1:]
            pieces = [likeliest(target.logits(r), prompt_best) for r in torch.split(rows, CHUNK)]
            best = torch.cat(pieces)
            new = best[-1:, 0]
            tokens = new.tolist()
        with clock("vocabulary"):
            head.observe(take(on_prompt, Seen(prompt, best)))
        unread = torch.cat((prompt, new))
        bar.update()

        while len(tokens) < max_new_tokens and tokens[-1] not in target.eos:
            with clock("draft_layer"):
                feature = draft.extend(unread, hidden, draft_cache)
            tree = grow(new[-1:], feature, draft, draft_cache, head, shape, clock)

            with clock("verify"):
                base = cache.length
                hidden = target.forward(tree.tokens, tree.lineage, cache)
                best = likeliest(target.logits(hidden), step_best)
                path = tree.walk(best[:, 0].tolist())
                cache.keep(base, path)
                # The target's choice after each accepted node is the next node on the path and,
                # after the last, the bonus token: the next tree's root.
                unread = new = best[path, 0]
                hidden = hidden[path]

            with clock("vocabulary"):
                emitted = up_to_end(new.tolist(), max_new_tokens - len(tokens), target.eos)
                stats.active_sizes.append(head.active())
                stats.covered += int(head.contains(new[: len(emitted)]).sum())
                head.observe(take(on_step, Seen(tree.tokens, best)))
            stats.acceptance_lengths.append(len(emitted))
            tokens += emitted
            bar.update(len(emitted))
    return Generation(torch.tensor(tokens), stats.acceptance_lengths, stats)


def likeliest(logits: Tensor, count: int) -> Tensor:
    """The `count` (>= 1) likeliest tokens of logits [n, V], int64 [n, count], argmax first."""
    count = min(count, logits.shape[-1])
    if count <= 1:
        return logits.argmax(-1, keepdim=True)
    values, tokens = logits.topk(count)
    # Greedy means argmax's choice among equal logits, and top-k may order them otherwise.
    if bool((values[:, 0] == values[:, 1]).any()):
        tokens[:, 0] = logits.argmax(-1)
    return tokens


def up_to_end(tokens: list[int], room: int, eos: frozenset[int]) -> list[int]:
    """The first `room` tokens, and none after an end of text."""
    kept = tokens[:room]
    ends = [place for place, token in enumerate(kept) if token in eos]
    return kept[: ends[0] + 1] if ends else kept
