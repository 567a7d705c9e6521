"""The models whose shapes are measured: the one table of them.

Sizes are those of each model's own config.json (Hugging Face, repository named beside it). The
draft is EAGLE-2's: one decoder layer of the target's own shape behind fc [D, 2 D].
"""

from dataclasses import dataclass


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
        """[out, in] of the draft layer's matrices: fc, qkv, o, gate with up, down.

        Fused as serving engines fuse them: five products instead of eight.
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
        # meta-llama/Llama-3.1-8B-Instruct. Llama-3-8B, which the papers measure, has these sizes
        # too, and so has its public draft, yuhuili/EAGLE-LLaMA3-Instruct-8B.
        Model("Llama-3.1-8B", 128256, 4096, 14336, 32, 8, 128),
        # meta-llama/Llama-3.2-1B-Instruct; LM head tied to the embedding.
        Model("Llama-3.2-1B", 128256, 2048, 8192, 32, 8, 64),
        # Qwen/Qwen2.5-7B-Instruct; rows of the head beyond the tokenizer's 151665 are padding.
        Model("Qwen2.5-7B", 152064, 3584, 18944, 28, 4, 128),
        # Qwen/Qwen3-8B.
        Model("Qwen3-8B", 151936, 4096, 12288, 32, 8, 128),
        # google/gemma-3-4b-it, text_config: 262208 rows with those kept for images, of which text
        # uses 262144. Gemma 3 caps no logits (final_logit_softcapping: null), unlike Gemma 2.
        Model("Gemma-3-4B", 262144, 2560, 10240, 8, 4, 256),
    )
}
DEFAULT = "Llama-3.1-8B"
# For smoke tests: every ratio odd enough that a mixed-up size shows.
TOY = Model("toy", 4000, 64, 160, 4, 2, 32)


def chosen(names: str) -> list[Model]:
    """Models by name, separated by commas; "all", or "toy".

    Raises ValueError: no such model.
    """
    if names == "all":
        return list(MODELS.values())
    known = {**MODELS, TOY.name: TOY}
    if unknown := [name for name in names.split(",") if name not in known]:
        raise ValueError(f"no such model: {', '.join(unknown)}; there are {', '.join(known)}")
    return [known[name] for name in names.split(",")]
