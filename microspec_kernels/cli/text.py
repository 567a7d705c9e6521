"""What `generate` needs beside the speculative loop: text to tokens, and the target on its own."""

from pathlib import Path
from typing import Any, Protocol

from microspec_kernels._files import reading
from microspec_kernels.speculative import CausalModel, Generation, Sampling, Stats
from microspec_kernels.speculative.extra import require
from microspec_kernels.speculative.sampling import choose, uniforms
from microspec_kernels.speculative.stats import Clock

BOS, INST, INST_END = 1, 3, 4  # Tekken's <s>, [INST] and [/INST]


class Tokenizer(Protocol):
    def encode(self, prompt: str) -> list[int]: ...
    def decode(self, tokens: list[int]) -> str: ...


class Tekken:
    """Mistral's Tekken as mistral-common ships it, with its instruction format."""

    def __init__(self) -> None:
        package = Path(require("mistral_common").__file__).parent
        tekken = require("mistral_common.tokens.tokenizers.tekken")
        self._tokenizer = tekken.Tekkenizer.from_file(package / "data" / "tekken_240911.json")
        self._specials = tekken.SpecialTokenPolicy.IGNORE

    def encode(self, prompt: str) -> list[int]:
        text = self._tokenizer.encode(prompt, bos=False, eos=False)
        return [BOS, INST, *text, INST_END]

    def decode(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, special_token_policy=self._specials))


class HuggingFace:
    """A checkpoint's own tokenizer, with its chat template where it has one."""

    def __init__(self, name: str) -> None:
        self._name, transformers = name, require("transformers")
        with reading(name, "a tokenizer"):
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(name)

    def encode(self, prompt: str) -> list[int]:
        if self._tokenizer.chat_template is None:
            return list(self._tokenizer.encode(prompt))
        message = [{"role": "user", "content": prompt}]
        with reading(self._name, "a chat template that takes one message of a user"):
            text = self._tokenizer.apply_chat_template(
                message, tokenize=False, add_generation_prompt=True
            )
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def decode(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))


def load_tokenizer(name: str) -> Tokenizer:
    """The tokenizer called "tekken", or that of a folder or of the hub."""
    return Tekken() if name == "tekken" else HuggingFace(name)


def target_alone(
    target: CausalModel, input_ids: Any, max_new_tokens: int, sampling: Sampling
) -> Generation:
    """The target's text without a draft, a token a pass, through the same cache."""
    import torch

    from microspec_kernels.speculative.cache import causal

    stats, tokens = Stats(), []
    clock = Clock(target.device, stats.seconds)
    cache = target.new_cache()
    with torch.no_grad(), clock("total"):
        hidden = target.prefill(input_ids, cache)[0][-1:]
        while True:
            place = torch.tensor(cache.lengths, device=target.device)
            new = choose(target.logits(hidden), uniforms(sampling.seed, place), sampling)
            tokens.append(int(new))
            if len(tokens) == max_new_tokens or tokens[-1] in target.eos:
                return Generation(torch.tensor(tokens), stats.acceptance_lengths, stats)
            hidden = target.forward(new[None], causal(1, target.device), cache)[0][0]
