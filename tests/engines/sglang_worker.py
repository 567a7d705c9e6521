# SPDX-License-Identifier: Apache-2.0
"""Run one SGLang configuration on behalf of sglang_runs.py, and write its results."""

import json
import os
import sys
from pathlib import Path
from typing import Any

QUICK_CHOICES = "MICROSPEC_TEST_QUICK_CHOICES"
"""If this variable is set, the head of a step is chosen after fewer steps and tokens."""


def scheduler(*args: Any, **kwargs: Any) -> Any:
    """Run SGLang's scheduler process as it runs on a GPU.

    On a CPU, SGLang would make tree masks of another kind of attention than the Triton one, and
    verify greedily at any temperature.
    """
    import probes
    import sgl_kernel
    from sglang.srt.managers.scheduler import run_scheduler_process
    from sglang.srt.speculative import eagle_utils, eagle_worker_v2

    eagle_worker_v2.default_tree_mask_mode = lambda: eagle_utils.TreeMaskMode.FULL_MASK
    eagle_utils._verify_uses_greedy = lambda *, is_all_greedy, **_: is_all_greedy
    name = "tree_speculative_sampling_target_only"
    setattr(eagle_utils, name, getattr(sgl_kernel, name))
    if QUICK_CHOICES in os.environ:
        from microspec_kernels.engine import dense_steps

        # A step takes half a second by Triton's interpreter.
        dense_steps.STEPS, dense_steps.HALF_LIFE, dense_steps.ENOUGH = 4, 16, 16
    if "MICROSPEC" in os.environ:
        from microspec_kernels.integrations.sglang.draft import ActiveDraft

        probes.install((ActiveDraft, "verified"))
    return run_scheduler_process(*args, **kwargs)


def main(request: dict[str, Any]) -> dict[str, Any]:
    from sglang.srt.entrypoints.engine import Engine

    class CPUEngine(Engine):
        run_scheduler_process_func = staticmethod(scheduler)

    options = request["engine"]
    engine = (CPUEngine if options["device"] == "cpu" else Engine)(**options)
    rounds = []
    for requests in request["rounds"]:
        if isinstance(requests, str):
            engine.update_weights_from_disk(requests)
            continue
        sampling = [
            {"temperature": 0, "ignore_eos": True, **sampling_options}
            for _, sampling_options in requests
        ]
        prompts = [prompt for prompt, _ in requests]
        outputs = engine.generate(input_ids=prompts, sampling_params=sampling)
        rounds.append([[output["output_ids"], output["meta_info"]] for output in outputs])
    engine.shutdown()
    return {"rounds": rounds}


if __name__ == "__main__":  # the engine spawns processes that import this module again
    result = main(json.loads(Path(sys.argv[1]).read_text()))
    Path(sys.argv[2]).write_text(json.dumps(result))
