"""Which fields of a config.json a model family's own code reads, recorded while transformers runs tiny models.

`python -m tests.models.reads` writes what it finds to src/zeropoint/models/fields.json, which the strict reader uses;
a test records again and compares.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedConfig
from transformers.initialization import no_init_weights

from tests.support import tiny
from zeropoint import models

FIELDS = Path(models.__file__).with_name("fields.json")
#: Code that reads every field alike (validation, saving, generation settings): what it reads says nothing of a model.
GENERIC = ("configuration_utils.py", "dataclasses.py", "/generation/", "utils/", "reads.py")
#: Methods of a config class that take fields from keyword arguments.
INITIALIZERS = ("__init__", "__post_init__", "convert_rope_params_to_dict")
#: Properties of the config class that a config.json sets all the same.
CLASS_FIELDS = ("per_layer_config", "rope_scaling", "num_labels", "output_attentions")
TOKENS = torch.arange(24)[None] * 7 % 251


def tiny_fields(name: str) -> dict[str, Any]:
    """The fields of one of the tiny models' config.json."""
    class_name, fields = {**tiny.CONFIGS, **tiny.NATIVE_CONFIGS}[name]
    return {**fields, "model_type": getattr(transformers, class_name).model_type}


def build_config(fields: dict[str, Any]) -> PreTrainedConfig:
    """What transformers makes of a config.json of these fields."""
    found = {key: value for key, value in fields.items() if key != "model_type"}
    return transformers.CONFIG_MAPPING[fields["model_type"]](**found)


def build_model(config: PreTrainedConfig) -> torch.nn.Module:
    """A model whose weights are all random: norms and biases too."""
    with no_init_weights():
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    model.tie_weights()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.float().named_parameters():
            mean = 1.0 if "norm" in name or "ln_" in name else 0.0
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05 + mean)
    return model.eval()


def run(model: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits `[T, vocab]` of `TOKENS`, read at once, and in two pieces through a cache."""
    with torch.inference_mode():
        whole = model(input_ids=TOKENS, use_cache=False).logits[0]
        first = model(input_ids=TOKENS[:, :-1], use_cache=True)
        last = model(input_ids=TOKENS[:, -1:], past_key_values=first.past_key_values, use_cache=True)
    return whole, torch.cat([first.logits[0], last.logits[0]])


@contextmanager
def recording(kind: type[PreTrainedConfig]) -> Iterator[dict[str, set[str]]]:
    """Record the attributes of every config of this class that code reads, with the files that read each."""
    original = PreTrainedConfig.__getattribute__
    found: dict[str, set[str]] = {}

    def record(self: PreTrainedConfig, name: str) -> Any:
        if issubclass(type(self), kind) and not name.startswith("__"):
            frame = sys._getframe(1)
            file = frame.f_code.co_filename
            if not any(part in file for part in GENERIC):
                found.setdefault(name, set()).add(file.rsplit("/", 1)[-1])
        return original(self, name)

    PreTrainedConfig.__getattribute__ = record  # type: ignore[method-assign]
    try:
        yield found
    finally:
        PreTrainedConfig.__getattribute__ = original  # type: ignore[method-assign]


def consumed(kind: type[PreTrainedConfig]) -> set[str]:
    """Names that the config class takes from its keyword arguments: `kwargs.pop("rope_theta", ...)`."""
    names = set()
    for base in kind.__mro__:
        if not base.__module__.startswith("transformers"):
            continue
        tree = ast.parse(inspect.getsource(sys.modules[base.__module__]))
        calls = [
            node
            for function in ast.walk(tree)
            if isinstance(function, ast.FunctionDef) and function.name in INITIALIZERS
            for node in ast.walk(function)
        ]
        for node in calls:
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in ("pop", "get", "setdefault")
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id == "kwargs"
                and node.args
                and isinstance(node.args[0], ast.Constant)
            ):
                names.add(node.args[0].value)
    return names


#: Fields that are read and change no logit of an evaluated model; the suite perturbs them all at once.
WITHOUT_EFFECT: dict[str, Any] = {
    "attention_dropout": 0.5,
    "attn_pdrop": 0.5,
    "resid_pdrop": 0.5,
    "embd_pdrop": 0.5,
    "dropout": 0.5,
    "hidden_dropout": 0.5,
    "residual_dropout": 0.5,
    "embedding_dropout": 0.5,
    "layerdrop": 0.5,
    "initializer_range": 0.5,
    "init_std": 0.5,
    "gradient_checkpointing": True,
    "reorder_and_upcast_attn": True,
    "pad_token_id": 5,
    "auto_map": {},
    "dtype": "float16",
    "torch_dtype": "float16",
    "name_or_path": "elsewhere",
    "_attn_implementation": "sdpa",
    "attn_implementation": "sdpa",
    "_experts_implementation": "eager",
    "experts_implementation": "eager",
    "output_attentions": False,
    "num_labels": 5,
    "_commit_hash": "0",
}

ROPES: tuple[dict[str, Any], ...] = (
    {"rope_type": "linear", "factor": 2.0},
    {"rope_type": "dynamic", "factor": 2.0},
    {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64},
    {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
     "original_max_position_embeddings": 64},
    {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [1.0] * 8, "factor": 2.0,
     "original_max_position_embeddings": 64},
)  # fmt: skip


def families() -> dict[str, list[str]]:
    """The tiny models of each family that the native engine runs."""
    found: dict[str, list[str]] = {}
    for name in tiny.NATIVE:
        found.setdefault(tiny_fields(name)["model_type"], []).append(name)
    return found


def variants(names: list[str]) -> Iterator[dict[str, Any]]:
    """Configs that reach a family's branches: its tiny models, every flag turned, every kind of rotation."""
    for name in names:
        yield tiny_fields(name)
    base = tiny_fields(names[0])
    kind = transformers.CONFIG_MAPPING[base["model_type"]]
    for field in dataclasses.fields(kind):
        if isinstance(field.default, bool) and field.name not in WITHOUT_EFFECT:
            yield {**base, field.name: not field.default}
    for rope in ROPES:
        yield {**base, "rope_scaling": rope}


def reads(names: list[str]) -> dict[str, Any]:
    """`{field: default}` of the fields that the family's code reads, and that change what a model computes."""
    kind = transformers.CONFIG_MAPPING[tiny_fields(names[0])["model_type"]]
    with recording(kind) as found:
        for fields in variants(names):
            with suppress(Exception):  # a variant that transformers refuses has been read up to there
                run(build_model(build_config(fields)))
    known = {field.name: field.default for field in dataclasses.fields(kind)}
    others = {name for name in dir(kind) if name not in known}
    own = {kind.attribute_map.get(name, name) for name in set(found) | consumed(kind)}
    kept = sorted(name for name in own - set(WITHOUT_EFFECT) if name not in others or name in CLASS_FIELDS)
    return {name: known.get(name) for name in kept}


def aliases(model_type: str) -> dict[str, str]:
    """Second names of fields, which set the same attribute."""
    return dict(transformers.CONFIG_MAPPING[model_type].attribute_map)


def table() -> dict[str, Any]:
    return {
        model_type: {
            "aliases": aliases(model_type),
            "reads": reads(names),
        }
        for model_type, names in sorted(families().items())
    }


def main() -> None:
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    found = {"transformers": transformers.__version__, "families": table()}
    FIELDS.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
