"""Runs model folders in vLLM, and prints the log-probability of each prompt token after the first, as JSON.

  python run_vllm.py '{"folders": [...], "tokens": [...], "dtype": "bfloat16"}'

This script imports nothing of Zeropoint, so that vLLM may have an environment of its own. For a folder that vLLM cannot
run, it prints the error message instead of numbers.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # in this process, so that its errors are seen here
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}


def logprobs(folder: str, tokens: list[int], dtype: str) -> list[float]:
    """Return the log-probability of each of the tokens after the first."""
    from vllm import LLM, SamplingParams

    model = LLM(model=folder, dtype=dtype, enforce_eager=True, max_model_len=128, max_num_seqs=1)
    try:
        asked = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
        result: Any = model.generate({"prompt_token_ids": tokens}, asked, use_tqdm=False)[0]
        pairs = zip(tokens[1:], result.prompt_logprobs[1:], strict=True)
        return [float(found[token].logprob) for token, found in pairs]
    finally:
        model.llm_engine.engine_core.shutdown()


def main(task: dict[str, Any]) -> dict[str, Any]:
    """Return {folder: log-probabilities or error message}, and the kind of device as "device"."""
    from vllm.distributed import cleanup_dist_env_and_memory
    from vllm.platforms import current_platform

    results: dict[str, Any] = {"device": current_platform.device_type}
    for folder in task["folders"]:
        try:
            results[folder] = logprobs(folder, task["tokens"], task["dtype"])
        except Exception as cause:
            results[folder] = f"{type(cause).__name__}: {cause}"
        cleanup_dist_env_and_memory()
    return results


if __name__ == "__main__":
    os.environ.update(SETTINGS)
    results = main(json.loads(sys.argv[1]))
    print("\n" + json.dumps(results), flush=True)
