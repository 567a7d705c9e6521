# SPDX-License-Identifier: Apache-2.0
"""The causal LMs of `transformers` that the loop supports, and the errors for all others."""

from typing import Any

import torch

from microspec_kernels._optional import require

# For these types, `LMHead` computes everything between the final norm and the logits. With any
# other computation there, the draft heads would rank by other logits. The groups differ by their
# masks:
# No layer has a window, whatever the config says.
FULL = (
    "llama", "gemma", "granite", "granitemoe", "cohere", "olmo", "olmo2", "glm", "glm4", "glm4_moe",
    "deepseek_v3", "glm4_moe_lite", "phi", "seed_oss", "arcee", "helium", "ernie4_5",
    "hunyuan_v1_dense", "apertus",
)  # fmt: skip
# Every layer has the config's window, if there is one.
WINDOWED = ("mistral", "mixtral", "qwen3_moe", "phi3", "starcoder2")
# Some layers have it: two masks.
MIXED = (
    "qwen2", "qwen2_moe", "qwen3", "gemma2", "gemma3_text", "cohere2", "olmo3", "smollm3",
    "ministral", "exaone4", "gpt_oss", "mellum",
)  # fmt: skip
MODEL_TYPES = FULL + WINDOWED + MIXED
WITH_EXPERTS = (
    "granitemoe", "glm4_moe", "mixtral", "qwen3_moe", "qwen2_moe", "gpt_oss", "deepseek_v3",
    "glm4_moe_lite", "mellum",
)  # fmt: skip
# Before transformers 5 these take only transformers' own caches.
SINCE_TRANSFORMERS_5 = ("granitemoe", "qwen2_moe", "gpt_oss")


def experts_wait_for_nothing(model: Any) -> bool:
    """Return whether a model without experts, or one whose experts the host does not wait for.

    `batched_mm` copies the weights of each token's experts, in fixed shapes. `grouped_mm` is
    PyTorch's: in bf16 one kernel on compute capability 9 and 10, else a loop over the experts that
    reads their numbers of tokens. So do the other implementations, and transformers before 5.
    """
    if model.config.model_type not in WITH_EXPERTS:
        return True
    implementation = getattr(model.config, "_experts_implementation", None)
    if implementation != "grouped_mm" or model.device.type != "cuda":
        return bool(implementation == "batched_mm")
    has_kernel = torch.cuda.get_device_capability(model.device)[0] in (9, 10)
    return bool(model.dtype == torch.bfloat16 and has_kernel)


def supported(model: Any) -> Any:
    """Return `model`, or the model inside a `PeftModel` whose adapters are all LoRA.

    Raises TypeError, ValueError: see `CausalModel`.
    """
    what = "CausalModel: model"
    config = getattr(model, "config", None)
    if config is None or not hasattr(model, "get_output_embeddings"):
        raise TypeError(f"{what}: expected a Hugging Face causal LM, got {type(model).__name__}")
    if config.model_type not in MODEL_TYPES:
        expected = f"a model_type of {', '.join(MODEL_TYPES)}"
        raise ValueError(f"{what}: expected {expected}, got {config.model_type!r}")
    version = require("transformers", "speculative").__version__
    if config.model_type in SINCE_TRANSFORMERS_5 and int(version.partition(".")[0]) < 5:
        expected = f"transformers 5 or later for {config.model_type}"
        raise ValueError(f"{what}: expected {expected}, got {version}")
    attention = getattr(config, "_attn_implementation", "eager")
    if attention not in ("sdpa", "eager"):
        raise ValueError(
            f"{what}: expected attn_implementation 'sdpa' or 'eager', which take a tree's mask, "
            f"got {attention!r}"
        )
    if getattr(config, "attn_logit_softcapping", None) and attention != "eager":
        raise ValueError(
            f"{what}: expected attn_implementation 'eager', the only one that applies "
            f"attn_logit_softcapping, got {attention!r}"
        )
    model = _without_peft(model, what)
    # The loop calls the model's modules, the LM head included, but not the model itself.
    if model._forward_hooks or model._forward_pre_hooks:
        raise ValueError(
            f"{what}: expected no forward hooks, which this loop would not run, "
            f"got {type(model).__name__} with some"
        )
    devices = {parameter.device for parameter in model.parameters()}
    if len(devices) != 1 or next(iter(devices)).type == "meta":
        got = ", ".join(sorted(map(str, devices)))
        raise ValueError(f"{what}: expected all weights on one device, got them on {got}")
    return model


def _without_peft(model: Any, what: str) -> Any:
    if not (hasattr(model, "get_base_model") and hasattr(model, "peft_config")):
        return model
    for config in model.peft_config.values():
        kind = getattr(config.peft_type, "value", config.peft_type)
        if kind != "LORA" or getattr(config, "alora_invocation_tokens", None):
            got = kind if kind != "LORA" else "LORA with alora_invocation_tokens"
            raise ValueError(
                f"{what}: expected a PeftModel whose adapters are all LORA, which live in the "
                f"model's modules, got {got}"
            )
    return model.get_base_model()
