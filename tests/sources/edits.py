"""Edits of a model folder: functions that change a sound tiny model in place."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]
Edit = Callable[[Path], None]

FILE = "model.safetensors"
ADAPTER = {"peft_type": "LORA", "base_model_name_or_path": "x/y", "r": 8, "target_modules": ["q_proj"]}


def tensors(change: Callable[[Tensors], Tensors | None]) -> Edit:
    def edit(folder: Path) -> None:
        found = dict(load_file(folder / FILE))
        found = change(found) or found
        save_file({k: v.clone().contiguous() for k, v in found.items()}, folder / FILE, {"format": "pt"})

    return edit


def without(*names: str) -> Edit:
    return tensors(lambda t: {k: v for k, v in t.items() if not any(name in k for name in names)})


def with_(**extra: torch.Tensor) -> Edit:
    return tensors(lambda t: t | {k.replace("__", "."): v for k, v in extra.items()})


def renamed(change: Callable[[str], str]) -> Edit:
    return tensors(lambda t: {change(k): v for k, v in t.items()})


def config(drop: tuple[str, ...] = (), **fields: Any) -> Edit:
    def edit(folder: Path) -> None:
        data = json.loads((folder / "config.json").read_text()) | fields
        (folder / "config.json").write_text(json.dumps({k: v for k, v in data.items() if k not in drop}))

    return edit


def both(*edits: Edit) -> Edit:
    def edit(folder: Path) -> None:
        for each in edits:
            each(folder)

    return edit


def nothing(folder: Path) -> None:
    pass


def removed(*names: str) -> Edit:
    def edit(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return edit


def text(name: str, content: str) -> Edit:
    return lambda folder: (folder / name).write_text(content) and None


def adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text(json.dumps(ADAPTER))
    lora = {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(8, 64)}
    save_file(lora, folder / "adapter_model.safetensors")


def sharded(folder: Path) -> None:
    """Two shards; both hold the final norm, of which the later one counts."""
    found = load_file(folder / FILE)
    (folder / FILE).unlink()
    names, middle = sorted(found), len(found) // 2
    first = {k: found[k] for k in names[:middle]} | {"model.norm.weight": torch.zeros(64)}
    second = {k: found[k] for k in names[middle:]}
    parts = {"model-00001-of-00002.safetensors": first, "model-00002-of-00002.safetensors": second}
    for name, part in parts.items():
        save_file(part, folder / name, {"format": "pt"})
    where = {key: name for name, part in parts.items() for key in part}
    (folder / f"{FILE}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


def truncated(folder: Path) -> None:
    data = (folder / FILE).read_bytes()
    (folder / FILE).write_bytes(data[: len(data) // 2])


def pickled(folder: Path) -> None:
    torch.save(dict(load_file(folder / FILE)), folder / "pytorch_model.bin")
    (folder / FILE).unlink()


def emptied(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


def head(rows: int = 260) -> torch.Tensor:
    return torch.randn(rows, 64, generator=torch.Generator().manual_seed(5)) * 0.1


def third_block(t: Tensors) -> Tensors:
    more = {k.replace("layers.1.", "layers.2."): v for k, v in t.items() if "layers.1." in k}
    return t | more


def set_value(name: str, value: float) -> Edit:
    def change(t: Tensors) -> None:
        t[name].view(-1)[3] = value

    return tensors(change)


def cast(name: str, dtype: torch.dtype) -> Edit:
    return tensors(lambda t: {k: v.to(dtype) if name in k else v for k, v in t.items()})


def peft_names(name: str) -> str:
    return "base_model.model." + name.replace("q_proj.weight", "q_proj.base_layer.weight")
