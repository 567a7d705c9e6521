# SPDX-License-Identifier: Apache-2.0
"""Write a small random target, a draft near it and a list of frequent tokens into a folder."""

from pathlib import Path

import numpy as np
import torch
import transformers

VOCAB = 199


def save(folder: Path) -> Path:
    config = transformers.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.5,
        eos_token_id=None,
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(folder / "target")
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.01 * torch.randn_like(weight)
    model.save_pretrained(folder / "draft")
    np.save(folder / "frequent_tokens.npy", np.arange(150))
    return folder
