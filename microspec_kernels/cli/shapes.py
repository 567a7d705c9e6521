# SPDX-License-Identifier: Apache-2.0
"""The shapes of LM heads that `info --advise` knows, by the model's name."""

# Model → (V, D) of its LM head. bench/harness/models.py has the other shapes and the sources.
SHAPES = {
    "Llama-3.1-8B": (128256, 4096),
    "Llama-3.2-1B": (128256, 2048),
    "Qwen2.5-7B": (152064, 3584),
    "Qwen3-8B": (151936, 4096),
    "Gemma-3-4B": (262144, 2560),
}
