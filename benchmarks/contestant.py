"""One contestant of `engine.py` or `serve.py`, in its own environment and process.

For `engine.py`, it loads a model and answers requests on stdin and stdout. For `serve.py`, it is an HTTP server.

    python -P benchmarks/contestant.py benchmarks/peers/llama_cpp.py convert MODEL OUT FORMAT
    python -P benchmarks/contestant.py benchmarks/peers/llama_cpp.py size PATH
    python -P benchmarks/contestant.py benchmarks/peers/llama_cpp.py serve PATH FORMAT THREADS
    python -P benchmarks/contestant.py benchmarks/peers/openvino.py listen PATH FORMAT THREADS PORT

A driver is one file with `FORMATS` and three functions:

- `convert(model, out, fmt)` writes the model into the folder `out`;
- `read_bytes(path)` is what the weights of one decode step occupy in the file, the embedding table left out
  where only a row of it is read;
- `load(path, fmt, threads)` returns `run(tokens [B, T] int64, new_tokens) -> (prefill_seconds, decode_seconds)`,
  which starts from an empty cache and takes `new_tokens` greedy steps after the prefill.

A driver for `serve.py` also has `SERVED`, the formats to serve, and `listen(path, fmt, threads, port)`, which runs a
server on 127.0.0.1 until it is killed. The server answers `GET /v1/models`, and `POST /v1/completions` with a prompt of
token ids and a streamed answer.

`serve` speaks JSON lines: for each `{"batch", "prompt", "new"}` one `{"prefill_seconds", "decode_seconds",
"rss_bytes"}`. `-P` keeps a driver's folder off the import path, where `openvino.py` would hide the package.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np


def import_driver(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"driver_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


def peak_rss_bytes() -> int:
    """VmHWM, not `ru_maxrss`: the latter starts at the parent's."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def prompt(batch: int, length: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """`[batch, length]` token ids, the same for every contestant, below any vocabulary's end."""
    return np.random.default_rng(length).integers(1000, 30000, (batch, length), dtype=np.int64)


def serve(driver: ModuleType, path: str, fmt: str, threads: int) -> None:
    # libraries print to stdout: keep the real one for answers and give them stderr
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    run = driver.load(path, fmt, threads)
    for line in sys.stdin:
        request = json.loads(line)
        prefill, decode = run(prompt(request["batch"], request["prompt"]), request["new"])
        answer = {"prefill_seconds": prefill, "decode_seconds": decode, "rss_bytes": peak_rss_bytes()}
        answers.write(json.dumps(answer) + "\n")


def main() -> None:
    driver = import_driver(Path(sys.argv[1]))
    verb, *arguments = sys.argv[2:]
    if verb == "convert":
        model, out, fmt = arguments
        driver.convert(Path(model), Path(out), fmt)
    elif verb == "size":
        print(driver.read_bytes(Path(arguments[0])))
    elif verb == "listen":
        path, fmt, threads, port = arguments
        driver.listen(path, fmt, int(threads), int(port))
    else:
        path, fmt, threads = arguments
        serve(driver, path, fmt, int(threads))


if __name__ == "__main__":
    main()
