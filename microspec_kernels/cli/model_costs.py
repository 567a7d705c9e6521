# SPDX-License-Identifier: Apache-2.0
"""Count from a model's config what a speculative step of it reads.

transformers builds the model on the meta device, so no weight is read or allocated.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from microspec_kernels._files import read_json, reading
from microspec_kernels._optional import require
from microspec_kernels.policy import StepCosts
from microspec_kernels.policy.model_bytes import Weights, weights_of

from .checkpoints import check_folder
from .shapes import KNOWN

EAGLE3_STATES = 3  # hidden states of the target that fc mixes
MTP_FIELDS = ("num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_modules")
BESIDE = ("architectures", "quantization_config", "draft_vocab_size", *MTP_FIELDS)
BITS = {"fp8": 8.0, "mxfp4": 4.25, "nvfp4": 4.5, "awq": 4.5, "gptq": 4.5}


def read_config(option: str, name: str) -> dict[str, Any]:
    """Read a model's config.json.

    Args:
        option: the option that errors name.
        name: a folder, a config.json, or the name of a repository on the hub.

    Raises:
        OSError: no such folder, file or repository.
        ValueError: the file is not a JSON object.
    """
    path = Path(name)
    if path.suffix == ".json" and path.is_file():
        return read_json(path)
    check_folder(option, name, weights=False)
    if path.is_dir():
        return read_json(path / "config.json")
    fetch = require("huggingface_hub", "speculative").hf_hub_download
    return read_json(Path(fetch(name, "config.json")))


def step_costs(
    model: str, target: str | None, drafts: int, requests: int
) -> tuple[str, StepCosts, int]:
    """Return the kind of draft, in words, what a step with it reads, and D of its LM head.

    Args:
        model: the target; or the draft, if ``target`` is given. A name of :data:`~.KNOWN`, or a
            config as :func:`read_config` takes it.
        target: the draft's target.
        drafts: number of drafted tokens of a step.
        requests: number of requests that run at a time.

    Raises:
        OSError, ValueError: see :func:`read_config`; a model that transformers does not know; an
            EAGLE-3 draft without a target.
    """
    own = _model("--advise", model)
    if own.is_eagle3 and target is None:
        raise ValueError("--target: expected MODEL beside an EAGLE-3 draft, got none")
    whole = own if target is None else _model("--target", target)
    layer = own.last_layer.read_by(requests)
    if own.is_eagle3:
        kind = "an EAGLE-3 draft"
        layer += EAGLE3_STATES * own.dim**2 * own.itemsize
    elif target is not None:
        kind, layer = "a draft model", own.all_layers.read_by(requests)
    else:
        kind = "its own MTP module" if own.has_mtp else "an EAGLE draft"
        layer += 2 * own.dim**2 * own.itemsize
    costs = StepCosts(
        target_bytes=whole.all_layers.read_by(requests * (drafts + 1))
        + whole.vocab_size * whole.row_bytes,
        layer_bytes=layer,
        row_bytes=own.row_bytes,
        num_rows=own.num_rows,
        num_drafts=drafts,
        num_requests=requests,
    )
    return kind, costs, own.dim


@dataclass(frozen=True)
class _Model:
    """Sizes of a model."""

    vocab_size: int
    dim: int
    all_layers: Weights
    last_layer: Weights
    itemsize: float = 2.0  # bytes of a parameter outside the LM head
    row_itemsize: float = 2.0
    num_rows: int = 0  # of the LM head
    is_eagle3: bool = False
    has_mtp: bool = False

    @property
    def row_bytes(self) -> float:
        """Bytes of a row of the LM head."""
        return self.dim * self.row_itemsize


def _model(option: str, name: str) -> _Model:
    known = {model.lower(): figures for model, figures in KNOWN.items()}.get(name.lower())
    if known is not None:
        rows, dim, layers, parameters = known
        all_layers, layer = Weights(2 * layers * parameters), Weights(2 * parameters)
        return _Model(rows, dim, all_layers, layer, num_rows=rows)
    if not name or ("/" not in name and not Path(name).exists()):
        expected = f"a folder, a config.json, a name on the hub, or one of {', '.join(KNOWN)}"
        raise ValueError(f"{option}: expected {expected}, got {name}")
    written = read_config(option, name)
    # speculators' drafts and models that read images keep the decoder's fields in a part.
    part = written.get("transformer_layer_config") or written.get("text_config") or written
    beside = {key: written[key] for key in BESIDE if key in written}
    fields = {**part, **beside}
    config, module = _on_meta(option, part)
    row_itemsize = float(_dtype(fields).itemsize)
    quantised = fields.get("quantization_config") or {}
    itemsize = _bits(quantised, 8 * row_itemsize) / 8
    body = module.get_decoder()
    embedding = module.get_input_embeddings().weight
    all_layers, layer = (
        weights_of(part, fields, skips=lambda _, p: p is embedding, itemsize=lambda _: itemsize)
        for part in (body, body.layers[-1])
    )
    return _Model(
        vocab_size=config.vocab_size,
        dim=config.hidden_size,
        all_layers=all_layers,
        last_layer=layer,
        itemsize=itemsize,
        row_itemsize=row_itemsize,
        num_rows=int(fields.get("draft_vocab_size") or config.vocab_size),
        is_eagle3="draft_vocab_size" in fields or "Eagle3" in str(fields.get("architectures")),
        has_mtp=any(fields.get(field) for field in MTP_FIELDS),
    )


def _on_meta(option: str, fields: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return transformers' config and its model without memory."""
    transformers = require("transformers", "speculative")
    kind = fields.get("model_type")
    own = {"model_type", "quantization_config", "transformers_version", "auto_map"}
    with reading(f"{option}: model_type {kind!r}", "a causal LM of transformers"):
        known = {key: value for key, value in fields.items() if key not in own}
        config = transformers.AutoConfig.for_model(kind, **known)
        with torch.device("meta"):
            return config, transformers.AutoModelForCausalLM.from_config(config)


def _dtype(fields: Mapping[str, Any]) -> torch.dtype:
    name = str(fields.get("dtype") or fields.get("torch_dtype") or "bfloat16")
    dtype = getattr(torch, name.removeprefix("torch."), None)
    return dtype if isinstance(dtype, torch.dtype) else torch.bfloat16


def _bits(quantised: Mapping[str, Any], otherwise: float) -> float:
    """Return the bits of a weight outside the LM head."""
    groups = quantised.get("config_groups") or {}
    named = [group.get("weights") or {} for group in groups.values()] if groups else []
    bits = quantised.get("bits") or next((group.get("num_bits") for group in named), None)
    method = str(quantised.get("quant_algo") or quantised.get("quant_method") or "").lower()
    return float(bits or BITS.get(method, otherwise))
