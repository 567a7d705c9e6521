# SPDX-License-Identifier: Apache-2.0
"""Build drafts from EAGLE-3 checkpoints in their published formats, and detect other drafts."""

import logging
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from microspec_kernels.speculative.models.eagle3 import Eagle3Draft
from microspec_kernels.speculative.models.lm_head import LMHead
from microspec_kernels.speculative.models.target import CausalModel

from .fields import refuse
from .files import check_shape, fill
from .layer_config import flattened, layer_config

logger = logging.getLogger(__name__)

EMBEDDING, HEAD = "embed_tokens.weight", "lm_head.weight"
# Other kinds of drafts, by patterns in their configs and tensor names.
OTHERS = {
    "Medusa heads": r"[Mm]edusa",
    "Hydra heads": r"[Hh]ydra",
    "an MLP speculator": r"mlp_speculator|MLPSpeculator",
    "another multi-token-prediction module": r"mtp|MTP|NextN|\beh_proj\b",
    "DFlash": r"[Dd][Ff]lash",
    "EAGLE for parallel drafting": r"mask_hidden|peagle|PEagle",
}


def refuse_others(config: Mapping[str, Any], names: Iterable[str], what: str) -> None:
    """Raise ValueError for a draft of another method, naming the config field or tensor found."""
    kind = config.get("speculators_model_type")
    told = [config.get("model_type"), kind, *(config.get("architectures") or ()), *config, *names]
    for method, mark in OTHERS.items():
        found = next((word for word in told if word and re.search(mark, word)), None)
        if found is not None:
            raise ValueError(
                f"{what}: expected an EAGLE-1, -2 or -3 draft, an MTP module named as DeepSeek's, "
                f"Qwen's or MiMo's, or a causal LM, got {method} (by {found!r})"
            )
    if kind not in (None, "eagle3"):
        raise ValueError(
            f"{what}: speculators_model_type: expected 'eagle3', the only one that this loop "
            f"knows, got {kind!r}"
        )


def is_eagle3(config: Mapping[str, Any], names: Iterable[str]) -> bool:
    """Return whether the config or tensors that EAGLE-1/2 do not have mark an EAGLE-3 draft."""
    marks = ("midlayer.", "layers.0.hidden_norm.", "d2t")
    return config.get("speculators_model_type") == "eagle3" or any(
        name.startswith(marks) for name in names
    )


def eagle3_draft(
    config: Mapping[str, Any], state: Mapping[str, Tensor], target: CausalModel, what: str
) -> Eagle3Draft:
    """Return the draft of a checkpoint that the official code, SpecForge or `speculators` wrote.

    Raises ValueError: see `load_draft`.
    """
    state = {name.replace("midlayer.", "layers.0.", 1): t for name, t in state.items()}
    draft_tensors = {
        name: state.pop(name) for name in (EMBEDDING, HEAD, "d2t", "t2d") if name in state
    }
    fields = flattened(config, what)
    refuse(
        fields,
        {"target_hidden_size": (target.hidden_size,), "bias": ("fc.bias" in state,)},
        what,
    )
    llama = layer_config(fields, state, target, what)
    size = llama.hidden_size
    if size != target.hidden_size and not {EMBEDDING, HEAD} <= draft_tensors.keys():
        raise ValueError(
            f"{what}: hidden_size: expected the target's {target.hidden_size} of a draft without "
            f"its own {EMBEDDING} and {HEAD}, got {size}"
        )
    embedding = lm_head = None
    if EMBEDDING in draft_tensors:
        embedding = own_rows(draft_tensors[EMBEDDING], llama, target, f"{what}: {EMBEDDING}")
    if HEAD in draft_tensors:
        rows = fields.get("draft_vocab_size") or len(draft_tensors[HEAD])
        check_shape(draft_tensors[HEAD], torch.Size((rows, size)), f"{what}: {HEAD}")
        tokens = tokens_of_rows(
            draft_tensors.get("d2t"), draft_tensors.get("t2d"), rows, llama.vocab_size, what
        )
        lm_head = own_head(draft_tensors[HEAD], tokens, llama.vocab_size, target, what)
    elif draft_tensors.keys() & {"d2t", "t2d"}:
        raise ValueError(f"{what}: missing tensors ['{HEAD}'], whose rows d2t and t2d describe")
    draft = Eagle3Draft(llama, target, embedding, lm_head).eval()
    fill(draft, state, what)
    return draft


def own_rows(weight: Tensor, config: Any, target: CausalModel, what: str) -> Tensor:
    """Check a draft's own embedding or LM head; return it on the target's device and in its dtype.

    It must have a row for each token of its config's vocabulary: [V, D], else ValueError.
    """
    check_shape(weight, torch.Size((config.vocab_size, config.hidden_size)), what)
    return weight.to(device=target.device, dtype=target.dtype)


def tokens_of_rows(
    d2t: Tensor | None, t2d: Tensor | None, rows: int, vocab_size: int, what: str
) -> Tensor:
    """Return each row's token, int64 [rows]: row + d2t[row].

    d2t: int64 or int32 [rows]; None: every token has its row.
    t2d: bool [V], whether a token has a row; None: not checked.

    Raises ValueError: a wrong shape or dtype, tokens outside [0, V) or repeated, d2t missing
    although rows differs from V, or t2d that contradicts d2t.
    """
    if d2t is None:
        if rows != vocab_size:
            raise ValueError(
                f"{what}: missing tensors ['d2t']: {HEAD} has {rows} rows for {vocab_size} tokens"
            )
        d2t = torch.zeros(rows, dtype=torch.int64)
    check_shape(d2t, torch.Size((rows,)), f"{what}: d2t")
    if d2t.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"{what}: d2t: expected int64, got {d2t.dtype}")
    tokens = torch.arange(rows) + d2t.long()
    outside = (tokens < 0) | (tokens >= vocab_size)
    if outside.any():
        row = int(outside.nonzero()[0])
        raise ValueError(
            f"{what}: d2t: expected offsets to tokens in [0, {vocab_size}), got {int(d2t[row])} "
            f"for row {row}"
        )
    has_row = torch.zeros(vocab_size, dtype=torch.bool)
    has_row[tokens] = True
    if int(has_row.sum()) != rows:
        raise ValueError(
            f"{what}: d2t: expected another token for each of {rows} rows, got {int(has_row.sum())}"
        )
    if t2d is not None:
        check_shape(t2d, has_row.shape, f"{what}: t2d")
        if not torch.equal(t2d.bool(), has_row):
            token = int((t2d.bool() != has_row).nonzero()[0])
            raise ValueError(
                f"{what}: t2d: expected True for exactly the tokens of d2t, got "
                f"{bool(t2d[token])} for token {token}"
            )
    return tokens


def own_head(
    weight: Tensor, tokens: Tensor, draft_size: int, target: CausalModel, what: str
) -> LMHead:
    """Return the head over a checkpoint's own rows [R, D].

    tokens: distinct int64 [R], each row's token, below `draft_size`.

    If each row equals the target's row of its token in the target's dtype, the result has all of
    the target's rows instead, without bias, scale and soft cap.
    """
    device, size = target.device, target.vocab_size
    tokens, weight = tokens.to(device), weight.to(device=device, dtype=target.dtype)
    comparable = weight.shape[1] == target.hidden_size and int(tokens.max()) < size
    if comparable and target.has_plain_head:
        lent = target.lm_head.weight
        if torch.equal(weight, lent[tokens]):
            logger.info("%s: its LM head's rows are the target's: all %d tokens", what, size)
            return LMHead(lent)
    logger.info("%s: its LM head's rows are its own: %d tokens of %d", what, len(weight), size)
    token_rows = torch.full((draft_size,), -1, device=device)
    token_rows[tokens] = torch.arange(len(tokens), device=device)
    return LMHead(weight, token_rows=token_rows).of_vocabulary(size)
