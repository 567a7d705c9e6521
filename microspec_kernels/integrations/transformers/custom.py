# SPDX-License-Identifier: Apache-2.0
"""The reference loop as a `custom_generate` callable for transformers."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from microspec_kernels._optional import require
from microspec_kernels.speculative import Batch, CausalModel, Sampling

# Transformers' warpers in the order in which transformers and `Sampling` apply them, each with the
# attribute that holds its value.
WARPERS = {
    "TemperatureLogitsWarper": "temperature",
    "TopKLogitsWarper": "top_k",
    "TopPLogitsWarper": "top_p",
}
OUTPUTS = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")


def microspec_generate(draft: Any, **options: Any) -> Callable[..., Any]:
    """Return a callable for `target.generate(input_ids, custom_generate=…, max_new_tokens=…)`.

    draft: the result of `load_draft`, or a causal LM of `transformers` with the target's
        vocabulary.
    options: options of :class:`microspec_kernels.speculative.Batch`: `head`, `capacity`,
        `num_groups`, ….

    Transformers calls the callable with input_ids int64 [B, P], padded on the left, and the
    reference loop continues them. It returns the same types as every decoding method: int64 [B, P +
    n], padded on the right, or, with `return_dict_in_generate`, a `GenerateDecoderOnlyOutput` whose
    `stats` is a list with one `Stats` of this package for each text. It applies these options of
    the call and its generation config: the end-of-text and padding ids, `max_new_tokens`,
    `max_length` and, with `do_sample`, `temperature`, `top_k`, `top_p` and `num_return_sequences`.
    With `do_sample` it draws one seed for each text from PyTorch's default generator, so
    `torch.manual_seed` determines the texts.

    The callable raises ValueError for any other option that the loop cannot apply, and names it
    (beams, other logits processors or stopping criteria, a used cache, scores, …). A `streamer` is
    the exception: transformers 5 does not pass it to the callable, and the streamer receives only
    the prompt.
    """

    def custom_generate(
        model: Any,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        **model_kwargs: Any,
    ) -> Any:
        _check_config(generation_config)
        kept = _kept(input_ids, model_kwargs)
        _check_prepared(model_kwargs, _prepared(model, input_ids, kept, generation_config))
        prompts = [row[inside] for row, inside in zip(input_ids, kept, strict=True)]
        sampling = _sampling(generation_config, logits_processor)
        longest, eos = _ends(stopping_criteria)
        target = CausalModel(model)
        target.eos = frozenset(eos)

        batch = Batch(target, draft, sampling=sampling, **options)
        room = longest - input_ids.shape[1]
        seeds = torch.randint(2**63 - 1, (len(prompts),)) if generation_config.do_sample else None
        requests = [
            batch.join(prompt, room, seed=None if seeds is None else int(seeds[text]))
            for text, prompt in enumerate(prompts)
        ]
        while batch.requests:
            batch.step()

        # Texts of different length imply an end-of-text id; it is the padding, as in transformers.
        pad = generation_config.pad_token_id
        pad = pad if pad is not None else eos[0] if eos else 0
        new = [request.result().tokens for request in requests]
        padded = pad_sequence(new, batch_first=True, padding_value=pad).to(input_ids)
        sequences = torch.cat((input_ids, padded), dim=1)
        if not generation_config.return_dict_in_generate:
            return sequences
        generation = require("transformers.generation", "speculative")
        output = generation.GenerateDecoderOnlyOutput(sequences=sequences)
        output["stats"] = [request.stats for request in requests]
        return output

    return custom_generate


def _refusal(argument: str, expected: object, got: object) -> ValueError:
    return ValueError(f"microspec_generate: {argument}: expected {expected}, got {got}")


def _check_config(config: Any) -> None:
    """Refuse anything but greedy search or sampling, and any output but tokens."""
    if config.num_beams not in (None, 1):
        raise _refusal("num_beams", 1, config.num_beams)
    if (mode := config.get_generation_mode().value) not in ("greedy_search", "sample"):
        raise _refusal("generation_config", "greedy search or sampling", mode)
    for name in OUTPUTS if config.return_dict_in_generate else ():
        if getattr(config, name):
            raise _refusal(name, False, True)


def _kept(input_ids: Tensor, model_kwargs: dict[str, Any]) -> Tensor:
    """Return which of input_ids [B, P] are not padding, bool [B, P]; padding is on the left."""
    mask = model_kwargs.get("attention_mask")
    kept = torch.ones_like(input_ids, dtype=torch.bool) if mask is None else mask.bool()
    if bool((kept[:, :-1] & ~kept[:, 1:]).any()):
        raise _refusal("attention_mask", "padding on the left only", "padding after a token")
    positions = model_kwargs.get("position_ids")
    if positions is not None and bool(((kept.cumsum(1) - 1 != positions) & kept).any()):
        raise _refusal("position_ids", "those of the text", positions.tolist())
    return kept


def _prepared(model: Any, input_ids: Tensor, kept: Tensor, config: Any) -> dict[str, Any]:
    """Return the arguments that the installed transformers derives from these ids alone."""

    def asked(
        model: Any,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        **prepared: Any,
    ) -> dict[str, Any]:
        return prepared

    config = copy.deepcopy(config)
    if config.cache_implementation is not None:
        config.cache_implementation = "dynamic"  # transformers would allocate and keep a static one
    config.max_length, config.max_new_tokens = input_ids.shape[1] + 1, None
    config.min_length, config.min_new_tokens = 0, None
    config.num_return_sequences = 1  # input_ids are repeated already
    if config.pad_token_id is None and config.eos_token_id is not None:
        # The value that transformers has chosen already: setting it avoids a second warning.
        eos = config.eos_token_id
        config.pad_token_id = eos if isinstance(eos, int) else eos[0]
    prepared: dict[str, Any] = model.generate(
        input_ids, generation_config=config, attention_mask=kept.long(), custom_generate=asked
    )
    return prepared


def _check_prepared(model_kwargs: dict[str, Any], prepared: dict[str, Any]) -> None:
    """Refuse arguments that transformers alone would not pass, or would pass with another value.

    The loop reads none of them, so a value set by the caller would be ignored silently.
    """
    for name, value in model_kwargs.items():
        if hasattr(value, "get_seq_length"):
            if (entries := int(value.get_seq_length())) > 0:
                raise _refusal(name, "an empty cache", f"{entries} entries")
        elif name in ("attention_mask", "position_ids"):  # `_kept` has checked them
            continue
        # Transformers 4 passes streamer and synced_gpus even if they are not set.
        elif value is not None and value is not False:
            if name not in prepared:
                raise _refusal(name, None, type(value).__name__)
            if isinstance(value, Tensor) or value != prepared[name]:
                raise _refusal(name, prepared[name], value)


def _sampling(config: Any, processors: Any) -> Sampling:
    """Convert the logits processors to a `Sampling`: only WARPERS, each once, in order."""
    module = require("transformers.generation.logits_process", "speculative")
    kinds = [getattr(module, name) for name in WARPERS] if config.do_sample else []
    supported = ", ".join(kind.__name__ for kind in kinds)
    settings: dict[str, Any] = {"temperature": 1.0} if config.do_sample else {}
    for processor in processors:
        kind = type(processor)
        if kind not in kinds or getattr(processor, "min_tokens_to_keep", 1) != 1:
            raise _refusal("logits_processor", supported or "none", kind.__name__)
        kinds = kinds[kinds.index(kind) + 1 :]
        name = WARPERS[kind.__name__]
        settings[name] = getattr(processor, name)
    return Sampling(**settings)


def _ends(criteria: Any) -> tuple[int, list[int]]:
    """Return the longest length, prompt and padding included, and the end-of-text ids."""
    module = require("transformers.generation.stopping_criteria", "speculative")
    lengths: list[int] = []
    eos: list[int] = []
    for criterion in criteria:
        if type(criterion) is module.MaxLengthCriteria:
            lengths.append(criterion.max_length)
        elif type(criterion) is module.EosTokenCriteria:
            eos += criterion.eos_token_id.tolist()
        else:
            raise _refusal("stopping_criteria", "length and end of text", type(criterion).__name__)
    if not lengths:
        raise _refusal("max_length", "a number", None)
    return min(lengths), eos
