# SPDX-License-Identifier: Apache-2.0
"""The names and arguments of SGLang that its plugin uses, without an engine."""

import enum
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from .fake_graphs import FakeGraph
from .fake_modules import imported

STEPS = 3


class UnquantizedEmbeddingMethod:
    pass


class VocabParallelEmbedding(nn.Module):
    def __init__(self, weight: Tensor, rows: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.quant_method: Any = UnquantizedEmbeddingMethod()
        self.num_embeddings = self.org_vocab_size = rows
        self.tp_size, self.embedding_dim = 1, weight.size(1)
        self.shard_indices = SimpleNamespace(org_vocab_start_index=0, org_vocab_end_index=rows)


class LogitsProcessor(nn.Module):
    do_tensor_parallel_all_gather, use_attn_tp_group = True, False

    def _compute_lm_head(
        self, hidden_states: Tensor, lm_head: Any, embedding_bias: Any = None, *, out: Any = None
    ) -> Tensor:
        if hasattr(lm_head.quant_method, "apply"):
            return lm_head.quant_method.apply(lm_head, hidden_states)
        return (hidden_states @ lm_head.weight.T)[:, : lm_head.org_vocab_size]


class LlamaForCausalLMEagle3(nn.Module):
    """A draft model.

    `weight` is the LM head [padded rows, D], `tokens` the token of each row (SGLang's
    hot_token_id).
    """

    def __init__(self, weight: Tensor, rows: int, vocab_size: int, tokens: Tensor | None) -> None:
        super().__init__()
        self.lm_head = VocabParallelEmbedding(weight, rows)
        self.logits_processor = LogitsProcessor()
        self.embedding = torch.randn(vocab_size, weight.size(1))
        self.hot_token_id = tokens

    def forward(self, hidden: Tensor) -> Tensor:
        return self.logits_processor._compute_lm_head(hidden, self.lm_head)


class EagleDraftWorker:
    def __init__(self, model: Any, vocab_size: int, topk: int = 1) -> None:
        self.topk, self.hot_token_id = topk, None
        text_config = SimpleNamespace(to_dict=lambda: {})
        self.target_worker = SimpleNamespace(
            model_runner=SimpleNamespace(model=torch.nn.Linear(1, 1)),
            model_config=SimpleNamespace(vocab_size=vocab_size, hf_text_config=text_config),
        )
        self.speculative_num_steps = 3
        self.num_rows = model.lm_head.org_vocab_size
        self.cuda_graph_runner: Any = None
        self.cuda_graph_runner_for_draft_extend: Any = None
        hf_config = SimpleNamespace()
        self.draft_runner = SimpleNamespace(
            model=model,
            dtype=model.lm_head.weight.dtype,
            model_config=SimpleNamespace(hf_config=hf_config),
        )

    def init_lm_head(self) -> None:
        self.hot_token_id = self.draft_runner.model.hot_token_id

    def draft(self, batch: Any) -> Tensor:
        return self.draft_forward(batch)

    def draft_forward(self, forward_batch: Any) -> Tensor:
        """Return the tokens of each step, [B, STEPS, topk]; with topk > 1 only the best goes on."""
        index, tokens = forward_batch.spec_info.topk_index, []
        for step in range(STEPS):
            if self.hot_token_id is not None:
                index = self.hot_token_id[index]
            tokens.append(index)
            if step < STEPS - 1:
                index = self._choose(self.draft_runner.model.embedding[index[:, 0]])[1]
        return torch.stack(tokens, 1)

    def _draft_extend_for_prefill(
        self, batch: Any, target_hidden_states: Tensor, next_token_ids: Tensor
    ) -> Any:
        topk_p, topk_index = self._choose(self.draft_runner.model.embedding[next_token_ids])
        return SimpleNamespace(topk_p=topk_p, topk_index=topk_index)

    def _draft_extend_for_decode(self, batch: Any, batch_result: Any) -> None:
        following = batch_result.next_draft_input
        hidden = self.draft_runner.model.embedding[following.bonus_tokens]
        following.topk_p, following.topk_index = self._choose(hidden)

    def _choose(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        return tuple(self.draft_runner.model(hidden).float().softmax(-1).topk(self.topk))


@dataclass(frozen=True)
class ShapeKey:
    size: int
    variant_label: str | None = None


class Backend:
    def __init__(self) -> None:
        self.graphs: dict[ShapeKey, FakeGraph] = {}

    def capture_one(
        self, shape_key: ShapeKey, forward_fn: Any, capture_inputs: Any = None, hook: Any = None
    ) -> None:
        forward_fn()  # warms up
        with FakeGraph() as self.graphs[shape_key]:
            forward_fn()

    def replay(self, shape_key: ShapeKey, static_forward_batch: Any) -> None:
        self.graphs[shape_key].replay()


class DecodeCudaGraphRunner:
    sizes = (4, 2)

    def __init__(self, eagle_worker: Any) -> None:
        self.eagle_worker, self.backend = eagle_worker, Backend()
        width = eagle_worker.draft_runner.model.lm_head.weight.size(1)
        self.hidden, self.logits = torch.zeros(4, width), torch.zeros(4, eagle_worker.num_rows)
        self.capture()

    def capture(self) -> None:
        for size in self.sizes:
            self.backend.capture_one(ShapeKey(size), lambda size=size: self.run_once(size))

    def run_once(self, size: int) -> None:
        model = self.eagle_worker.draft_runner.model
        self.logits[:size].copy_(model.forward(self.hidden[:size]))

    def execute(self, hidden: Tensor) -> Tensor:
        self.hidden[: len(hidden)] = hidden
        self.backend.replay(ShapeKey(len(hidden)), None)
        return self.logits[: len(hidden)].clone()


class EAGLEDraftCudaGraphRunner(DecodeCudaGraphRunner):
    pass


class EAGLEDraftExtendCudaGraphRunner(DecodeCudaGraphRunner):
    pass


class EAGLEWorkerV2:
    def __init__(self, draft_worker: Any) -> None:
        self.draft_worker = draft_worker

    def verify(self, batch: Any) -> Any:
        result = batch.result
        batch.spec_info = None
        return result


class MultiLayerEagleDraftWorker:
    """A draft with a model for each step; `models` may have one LM head or one each."""

    def __init__(self, models: list[Any], vocab_size: int) -> None:
        single = EagleDraftWorker(models[0], vocab_size)
        self.target_worker, self.speculative_num_steps = single.target_worker, len(models)
        self.draft_runner_list = [
            EagleDraftWorker(model, vocab_size).draft_runner for model in models
        ]
        self.draft_runner = self.draft_runner_list[0]

    def init_lm_head(self) -> None: ...

    def draft(self, batch: Any) -> None:
        """The models have drafted before, after the last verification."""

    def _draft_extend_for_prefill(
        self, batch: Any, target_hidden_states: Tensor, next_token_ids: Tensor
    ) -> Tensor:
        """Return the drafts of all steps, [B, steps]."""
        tokens = [next_token_ids]
        for runner in self.draft_runner_list:
            logits = runner.model(runner.model.embedding[tokens[-1]])
            tokens.append(logits.argmax(-1))
        return torch.stack(tokens[1:], 1)


class MultiLayerEagleWorkerV2(EAGLEWorkerV2):
    def verify(self, batch: Any) -> Any:
        return super().verify(batch)


class SchedulerWeightUpdaterManager:
    def __init__(self, draft_worker: Any) -> None:
        self.draft_worker = draft_worker

    def _update(self, recv_req: Any) -> str:
        recv_req()
        return "updated"

    update_weights_from_disk = update_weights_from_distributed = _update
    update_weights_from_tensor = update_weights_from_ipc = _update


class Scheduler:
    def __init__(self, server_args: Any) -> None:
        self.draft_worker = server_args.make_draft_worker()


class HookType(enum.Enum):
    AROUND = "around"


class HookRegistry:
    hooks: list[tuple[str, Any]]

    @classmethod
    def register(cls, target: str, hook: Any, hook_type: HookType) -> None:
        cls.hooks.append((target, hook))


def config() -> dict[str, dict[str, Any]]:
    """Return a supported configuration, by group."""
    return {
        "spec": {
            "speculative_algorithm": "EAGLE3",
            "speculative_token_map": None,
            "speculative_adaptive": False,
            "enable_multi_layer_eagle": False,
        },
        "schedule": {"enable_mixed_chunk": False},
        "lora": {"enable_lora": None},
        "exec": {"features": SimpleNamespace(enable_memory_saver=False)},
        "parallel": {
            "attn_dp_size": 1,
            "attn_cp_size": 1,
            "attn_tp_size": 1,
            "pp_size": 1,
            "attn_tp_rank": 0,
            "attn_dp_rank": 0,
        },
        "disagg": {"disaggregation_mode": "null"},
        "observability": {"decode_log_interval": 2, "enable_metrics": False},
        "serving": {"served_model_name": "the model", "tokenizer_path": None},
    }


@contextmanager
def installed(groups: dict[str, dict[str, Any]] | None = None) -> Iterator[None]:
    """Make SGLang importable, with this configuration."""

    def members(kind: type) -> dict[str, Any]:
        return {kind.__name__: type(kind.__name__, (kind,), {"hooks": []})}  # get patched

    context = {
        f"get_{name}": lambda group=group: SimpleNamespace(**group)
        for name, group in (groups or config()).items()
    }
    updater = "managers.scheduler_components.weight_updater"
    contents = {
        "sglang": {"__version__": "0.5.23"},
        "sglang.srt.runtime_context": context,
        "sglang.srt.managers.scheduler": members(Scheduler),
        f"sglang.srt.{updater}": members(SchedulerWeightUpdaterManager),
        "sglang.srt.plugins.hook_registry": members(HookRegistry) | {"HookType": HookType},
        "sglang.srt.speculative.eagle_worker_v2": members(EagleDraftWorker)
        | members(EAGLEWorkerV2),
        "sglang.srt.speculative.eagle_draft_cuda_graph_runner": members(EAGLEDraftCudaGraphRunner),
        "sglang.srt.speculative.eagle_draft_extend_cuda_graph_runner": members(
            EAGLEDraftExtendCudaGraphRunner
        ),
        "sglang.srt.speculative.multi_layer_eagle_worker_v2": members(MultiLayerEagleDraftWorker)
        | members(MultiLayerEagleWorkerV2),
        "sglang.srt.layers.logits_processor": {"LogitsProcessor": LogitsProcessor},
        "sglang.srt.layers.vocab_parallel_embedding": {
            "VocabParallelEmbedding": VocabParallelEmbedding
        },
    }
    with imported(contents):
        yield
