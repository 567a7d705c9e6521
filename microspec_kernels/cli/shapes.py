# SPDX-License-Identifier: Apache-2.0
"""The models that `info --advise` knows without a config, by name."""

# Model → V and D of its LM head, its layers, and a layer's parameters without norms and biases:
# sums over the shapes in each config.json. bench/harness/models.py has the sources.
KNOWN = {
    "Llama-3.1-8B": (128256, 4096, 32, 218_103_808),
    "Llama-3.2-1B": (128256, 2048, 16, 60_817_408),
    "Qwen2.5-7B": (152064, 3584, 28, 233_046_016),
    "Qwen3-8B": (151936, 4096, 36, 192_937_984),
    "Gemma-3-4B": (262144, 2560, 34, 94_371_840),
}

# Model → (V, D) of its LM head.
SHAPES = {model: figures[:2] for model, figures in KNOWN.items()}
