# SPDX-License-Identifier: Apache-2.0
"""The models whose shapes are measured.

Sizes are those of each model's config.json (Hugging Face; the repository is named beside it). V and
D of the LM head come from the package's table. The draft is EAGLE-2's: one decoder layer of the
target's shape behind fc [D, 2 D].
"""

from dataclasses import dataclass

from microspec_kernels.cli.shapes import SHAPES


@dataclass(frozen=True)
class Model:
    name: str
    vocab_size: int
    dim: int  # hidden_size
    inner: int  # intermediate_size
    heads: int  # num_attention_heads
    kv_heads: int  # num_key_value_heads
    head_dim: int
    softcap: float = 0.0  # final_logit_softcapping; 0 for none

    def draft_products(self) -> list[tuple[int, int]]:
        """Return [out, in] of the draft layer's matrices: fc, qkv, o, gate with up, down.

        They are fused as serving engines fuse them: five products instead of eight.
        """
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return [
            (self.dim, 2 * self.dim),
            (queries + 2 * keys, self.dim),
            (self.dim, queries),
            (2 * self.inner, self.dim),
            (self.dim, self.inner),
        ]


MODELS = {
    model.name: model
    for model in (
        # meta-llama/Llama-3.1-8B-Instruct. Llama-3-8B, which the papers measure, and its public
        # draft, yuhuili/EAGLE-LLaMA3-Instruct-8B, have the same sizes.
        Model("Llama-3.1-8B", *SHAPES["Llama-3.1-8B"], 14336, 32, 8, 128),
        # meta-llama/Llama-3.2-1B-Instruct; LM head tied to the embedding.
        Model("Llama-3.2-1B", *SHAPES["Llama-3.2-1B"], 8192, 32, 8, 64),
        # Qwen/Qwen2.5-7B-Instruct; rows of the head beyond the tokenizer's 151665 are padding.
        Model("Qwen2.5-7B", *SHAPES["Qwen2.5-7B"], 18944, 28, 4, 128),
        # Qwen/Qwen3-8B.
        Model("Qwen3-8B", *SHAPES["Qwen3-8B"], 12288, 32, 8, 128),
        # google/gemma-3-4b-it, text_config: 262208 rows with those kept for images, of which text
        # uses 262144. Gemma 3 caps no logits (final_logit_softcapping: null), unlike Gemma 2.
        Model("Gemma-3-4B", *SHAPES["Gemma-3-4B"], 10240, 8, 4, 256),
    )
}
DEFAULT = "Llama-3.1-8B"
# For quick runs of single ops on a GPU.
SMALL = Model("quick", 32000, 1024, 4096, 8, 2, 128)
# For smoke tests. All its sizes differ, so that a mixed-up size shows.
TOY = Model("toy", 4000, 64, 160, 4, 2, 32)


def chosen(names: str) -> list[Model]:
    """Return the models of these names, separated by commas; or "all", or "toy".

    Raises:
        ValueError: no such model.
    """
    if names == "all":
        return list(MODELS.values())
    by_name = {**MODELS, TOY.name: TOY}
    if unknown := [name for name in names.split(",") if name not in by_name]:
        raise ValueError(f"no such model: {', '.join(unknown)}; there are {', '.join(by_name)}")
    return [by_name[name] for name in names.split(",")]
