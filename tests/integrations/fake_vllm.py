# SPDX-License-Identifier: Apache-2.0
"""The names and arguments of vLLM that its plugin uses, without an engine."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from .fake_modules import imported

TARGET = nn.Linear(1, 1)  # the target model, of which only the size counts
LAYERS = "vllm.model_executor.layers"
V2 = "vllm.v1.worker.gpu"


class UnquantizedEmbeddingMethod:
    pass


class UnquantizedLinearMethod:
    pass


class VocabParallelEmbedding(nn.Module):
    def __init__(self, weight: Tensor, rows: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.quant_method: Any = UnquantizedEmbeddingMethod()
        self.num_embeddings = self.org_vocab_size = rows
        self.tp_size, self.tp_rank = 1, 0
        self.shard_indices = SimpleNamespace(org_vocab_start_index=0, org_vocab_end_index=rows)


class LogitsProcessor(nn.Module):
    def __init__(self, rows: int) -> None:
        super().__init__()
        self.org_vocab_size, self.scale, self.logits_as_input = rows, 1.0, False
        self.head_dtype: torch.dtype | None = None

    def forward(
        self, lm_head: Any, hidden_states: Tensor, embedding_bias: Tensor | None = None
    ) -> Tensor:
        logits = hidden_states @ lm_head.weight.T
        return (logits if embedding_bias is None else logits + embedding_bias)[
            ..., : self.org_vocab_size
        ]


class Executor:
    def __init__(self, vllm_config: Any) -> None:
        self.vllm_config = vllm_config


class AsyncLLM:
    """The client in the process that serves the API; `workers` are those that it asks."""

    def __init__(self, vllm_config: Any, workers: list[Any]) -> None:
        self.vllm_config, self.workers, self.logged = vllm_config, workers, 0

    async def do_log_stats(self) -> None:
        self.logged += 1

    async def collective_rpc(
        self, method: str, timeout: Any = None, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> list[Any]:
        return [getattr(worker, method)(*args, **(kwargs or {})) for worker in self.workers]


class WorkerBase:
    def __init__(self, vllm_config: Any, rank: int = 0) -> None:
        self.vllm_config = vllm_config


class DraftModel(nn.Module):
    """EAGLE's model or, with offsets, EAGLE-3's; `norm` comes before the head, like in MTP's."""

    def __init__(
        self, weight: Tensor, rows: int, vocab_size: int, offsets: Tensor | None = None
    ) -> None:
        super().__init__()
        self.lm_head = VocabParallelEmbedding(weight, rows)
        self.logits_processor = LogitsProcessor(rows)
        self.vocab_size = vocab_size
        self.draft_id_to_target_id = offsets
        self.norm: Any = lambda hidden: hidden
        self.bias: Tensor | None = None

    def compute_logits(self, hidden_states: Tensor) -> Tensor:
        logits = self.logits_processor(self.lm_head, self.norm(hidden_states), self.bias)
        if self.draft_id_to_target_id is None:
            return logits
        offsets = self.draft_id_to_target_id
        targets = torch.arange(len(offsets), device=offsets.device) + offsets
        mapped = logits.new_full((len(logits), self.vocab_size), float("-inf"))
        mapped[:, targets] = logits
        return mapped


def config(vocab_size: int = 24, **additional: Any) -> Any:
    """Return a VllmConfig with a supported draft."""
    return SimpleNamespace(
        additional_config=additional,
        use_v2_model_runner=True,
        watermark_config=None,
        speculative_config=SimpleNamespace(
            method="eagle",
            num_speculative_tokens=3,
            use_gemma4_mtp=lambda: False,
            use_heterogeneous_vocab=False,
            draft_sample_method="greedy",
            enable_adaptive_verification=False,
            draft_model_config=SimpleNamespace(architectures=["DraftModel"]),
        ),
        parallel_config=SimpleNamespace(
            enable_batch_sharded_sampling=None,
            data_parallel_index=1,
            pipeline_parallel_size=1,
            decode_context_parallel_size=1,
            prefill_context_parallel_size=1,
        ),
        scheduler_config=SimpleNamespace(max_num_seqs=4),
        model_config=SimpleNamespace(
            enable_sleep_mode=False,
            dtype=torch.float32,
            hf_text_config=SimpleNamespace(to_dict=lambda: {}),
            get_vocab_size=lambda: vocab_size,
            tokenizer=None,
            tokenizer_revision=None,
            served_model_name="the model",
        ),
    )


@contextmanager
def installed(version: str = "0.32.0", **modules: dict[str, Any]) -> Iterator[None]:
    """Make vLLM importable.

    `modules` adds more modules, by path below `vllm`, with their contents.
    """
    contents: dict[str, dict[str, Any]] = {
        "vllm": {"__version__": version},
        "vllm.envs": {"VLLM_LOG_STATS_INTERVAL": 10.0},
        f"{LAYERS}.logits_processor": {"LogitsProcessor": LogitsProcessor},
        f"{LAYERS}.linear": {"UnquantizedLinearMethod": UnquantizedLinearMethod},
        f"{LAYERS}.vocab_parallel_embedding": {
            "UnquantizedEmbeddingMethod": UnquantizedEmbeddingMethod,
            "VocabParallelEmbedding": VocabParallelEmbedding,
        },
        # New classes for each test, because the plugin patches them.
        "vllm.v1.engine.async_llm": {"AsyncLLM": type("AsyncLLM", (AsyncLLM,), {})},
        "vllm.v1.executor.abstract": {"Executor": type("Executor", (Executor,), {})},
        "vllm.v1.worker.worker_base": {"WorkerBase": type("WorkerBase", (WorkerBase,), {})},
    } | modules
    with imported(contents):
        yield
