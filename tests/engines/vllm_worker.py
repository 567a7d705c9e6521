# SPDX-License-Identifier: Apache-2.0
"""Run one vLLM configuration on behalf of vllm_runs.py, and write its results."""

import json
import sys
from pathlib import Path
from typing import Any

import probes
from vllm import LLM, SamplingParams


def main(configuration: dict[str, Any]) -> dict[str, Any]:
    if configuration["stats"]:  # the plugin is on
        from microspec_kernels.integrations.vllm.drafter import Drafter

        probes.install((Drafter, "keep"), (Drafter, "observe"))
    llm = LLM(**configuration["engine"])
    rounds = []
    for requests in configuration["rounds"]:
        sampling = [
            SamplingParams(
                **{"temperature": 0, "ignore_eos": True, "detokenize": False, **sampling_options}
            )
            for _, sampling_options in requests
        ]
        prompts = [{"prompt_token_ids": prompt} for prompt, _ in requests]
        outputs = llm.generate(prompts, sampling, use_tqdm=False)
        rounds.append([list(output.outputs[0].token_ids) for output in outputs])
    counters = {
        metric.name.removeprefix("vllm:"): metric.value
        for metric in llm.get_metrics()
        if hasattr(metric, "value")
    }
    stats = llm.collective_rpc("microspec_stats") if configuration["stats"] else []
    return {"rounds": rounds, "counters": counters, "stats": stats}


if __name__ == "__main__":  # the engine spawns workers that import this module again
    result = main(json.loads(Path(sys.argv[1]).read_text()))
    Path(sys.argv[2]).write_text(json.dumps(result))
