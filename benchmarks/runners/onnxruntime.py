"""A folder with an ONNX decoder in onnxruntime, for `exports.py`: by the runner of `zeropoint compare`.

    PYTHON benchmarks/runners/onnxruntime.py FOLDER REQUEST.npz RESULT.npz

REQUEST and RESULT are those of `llama_cpp.py`.
"""

from __future__ import annotations

import sys

import numpy as np

from zeropoint.runtime import open_runner


def main() -> None:
    folder, request, result = sys.argv[1:]
    asked = np.load(request)
    runner = open_runner(folder)
    prompt, count = asked["prompt"].tolist(), int(asked["new_tokens"])
    np.savez(
        result,
        logits=np.stack([runner.logits(window) for window in asked["windows"]]),
        greedy=np.array(runner.generate(prompt, max_new_tokens=count), np.int64),
        ids=np.array(runner.encode(asked["text"].tobytes().decode()), np.int64),
    )


if __name__ == "__main__":
    main()
