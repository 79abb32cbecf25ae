"""Tasks of lm-evaluation-harness from local YAML files: which items does a model get right?

A task file can run code in more ways than it shows: `!function` imports Python from beside it, `include` reads other
files, unknown metrics are fetched as scripts, and Jinja templates reach every Python object. So a file is taken as
*data* unless the caller says that its code may run: only keys that describe, data files that lie on this disk, metrics
that lm-eval itself computes, and templates in a sandbox.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from zeropoint.errors import UsageError
from zeropoint.evaluate import harness
from zeropoint.runtime.protocol import Runner

SUFFIXES = (".yaml", ".yml")
_KEYS = frozenset(
    {
        "task",
        "task_alias",
        "tag",
        "metadata",
        "output_type",
        "num_fewshot",
        "generation_kwargs",
        "metric_list",
    }
    | {"dataset_path", "dataset_kwargs", "training_split", "validation_split", "test_split", "fewshot_split"}
    | {"doc_to_text", "doc_to_choice", "doc_to_target", "description", "gen_prefix"}
    | {"target_delimiter", "fewshot_delimiter"}
)
_DATA = frozenset({"json", "csv", "parquet", "text"})
_METRICS = frozenset({"acc", "acc_norm", "exact_match"})
_METRIC_KEYS = frozenset(
    {"metric", "aggregation", "higher_is_better"}
    | {"ignore_case", "ignore_punctuation", "ignore_numbers", "regexes_to_ignore"}
)
# Which is "the" accuracy when a task has several metrics per item.
_PREFERRED = ("acc", "exact_match", "acc_norm")
_FEWSHOT_SEED = 1234


def task_files(paths: Sequence[str | Path]) -> list[Path]:
    """The task files that are named: YAML files, and all of a folder but those that begin with an underscore,
    which are what others include. Raises UsageError for what is neither."""
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix in SUFFIXES and not p.name.startswith("_"))
            if not inside:
                raise UsageError(f"the folder {path} holds no task: no .yaml file")
            found += inside
        elif path.suffix in SUFFIXES and path.is_file():
            found.append(path)
        else:
            raise UsageError(f"there is no task file or folder {path} (lm-eval's YAML)")
    if not found:
        raise UsageError("no task is named")
    return [path.resolve() for path in found]


def answer(
    runner: Runner,
    tasks: Mapping[str, Any],
    *,
    limit: int | None = None,
    progress: Callable[[float], None] | None = None,
) -> dict[str, dict[str, Any]]:
    """Let a runner answer the first `limit` items of each task that `load` gave.

    Returns `{task: {"metric", "items", "correct"}}`: `items` are digests of what was asked, `correct` is 0 or 1 for
    each. Raises UsageError for a task in which no item is plainly right or wrong.
    """
    from lm_eval import evaluate

    lm = harness.adapter(runner, progress=progress)
    found = evaluate(
        lm=lm,
        task_dict={"tasks": dict(tasks), "groups": {}, "group_map": {}},
        limit=limit,
        bootstrap_iters=0,
        log_samples=True,
        confirm_run_unsafe_code=False,
    )
    return {name: _correctness(name, found["samples"][name]) for name in tasks}


def _correctness(name: str, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One task's items in the order of the file; of several filters the first."""
    kept = [s for s in samples if s.get("filter") == samples[0].get("filter")]
    kept.sort(key=lambda sample: sample["doc_id"])
    metrics = [*_PREFERRED, *(m for m in kept[0].get("metrics", ()) if m not in _PREFERRED)]
    for metric in metrics:
        values = [sample.get(metric) for sample in kept]
        if all(isinstance(v, int | float) and v in (0, 1) for v in values):
            items = [f"{s['doc_hash']}:{s['target_hash']}" for s in kept]
            return {"metric": metric, "items": items, "correct": [int(v or 0) for v in values]}
    raise UsageError(
        f"task {name} calls no item right or wrong (metrics {', '.join(metrics)}): it cannot be paired"
    )


def load(files: Sequence[str | Path], *, allow_code: bool = False) -> dict[str, Any]:
    """lm-eval's tasks by name, their data read.

    Raises UsageError when lm-eval is missing, a file cannot be read, two tasks have one name, or a file needs code to
    run and `allow_code` is false.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    if not allow_code:  # read when `datasets` and `evaluate` are imported, which is now
        os.environ |= {"HF_DATASETS_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1"}
    try:
        from lm_eval import utils
        from lm_eval.tasks import TaskManager
    except ModuleNotFoundError as cause:
        raise UsageError(harness.MISSING) from cause
    if not allow_code:
        utils.env = _sandbox(utils.env)
    tasks: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as cache:
        for file in map(Path, files):
            config, code = _parse(file)
            if code and not allow_code:
                raise UsageError(f"the task {file} {code}: add --allow-code if you trust it")
            spec = config["task"] if code else _with_data(config, file, cache)
            try:
                # By its name lm-eval finds the file again, with its functions.
                manager = TaskManager(include_path=str(file.parent) if code else None, include_defaults=False)
                loaded = manager.load([spec])["tasks"]
            except Exception as cause:  # lm-eval's, or of the task's own code
                raise UsageError(f"the task {file} does not load: {type(cause).__name__}: {cause}") from cause
            for name, task in loaded.items():
                if name in tasks:
                    raise UsageError(f"two tasks are called {name}")
                tasks[name] = _with_defaults(task)
    return tasks


def _with_defaults(task: Any) -> Any:
    """What lm-eval's own command line sets: no examples unless the file asks for some, always the same ones."""
    if task.get_config("num_fewshot") is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=_FEWSHOT_SEED)
    return task


def _sandbox(environment: Any) -> Any:
    """lm-eval's Jinja environment without the ways out of a template."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    safe = ImmutableSandboxedEnvironment(
        loader=environment.loader,
        undefined=environment.undefined,
        keep_trailing_newline=environment.keep_trailing_newline,
    )
    safe.filters = environment.filters
    return safe


def _parse(file: Path) -> tuple[dict[str, Any], str]:
    """The file's content, and in words why it needs code to run: empty for plain data."""
    import yaml  # comes with lm-eval

    functions: list[str] = []

    class Loader(yaml.SafeLoader):  # type: ignore[misc,unused-ignore]
        """Sees functions without importing them."""

    Loader.add_constructor("!function", lambda _loader, node: functions.append(str(node.value)))
    try:
        with file.open(encoding="utf-8") as text:
            config = yaml.load(text, Loader)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UsageError(f"the task {file} cannot be read: {error}") from error
    if not isinstance(config, dict) or not isinstance(config.get("task"), str):
        raise UsageError(f"{file} is not a task: it needs a name, `task: NAME`")
    if functions:
        return config, f"runs Python code (!function {', '.join(functions)})"
    return config, _beyond_data(config)


def _beyond_data(config: Mapping[str, Any]) -> str:
    """What a task asks for beyond describing its data, or nothing."""
    if unknown := sorted(set(config) - _KEYS):
        return f"asks for more than data and templates ({', '.join(map(str, unknown))})"
    if config.get("dataset_path") not in _DATA:
        return (
            f"reads its data from {config.get('dataset_path')!r}, not from {', '.join(sorted(_DATA))} files"
        )
    if set(config.get("dataset_kwargs") or ()) != {"data_files"}:
        return "names its data otherwise than by `dataset_kwargs: {data_files: ...}`"
    for metric in config.get("metric_list") or ():
        if (
            not isinstance(metric, Mapping)
            or metric.get("metric") not in _METRICS
            or set(metric) - _METRIC_KEYS
        ):
            return f"has a metric that is not plainly one of {', '.join(sorted(_METRICS))}"
    return ""


def _with_data(config: Mapping[str, Any], file: Path, cache: str) -> dict[str, Any]:
    files = _beside(config["dataset_kwargs"]["data_files"], file)
    return {**config, "dataset_kwargs": {"data_files": files, "cache_dir": cache}}


def _beside(files: Any, task: Path) -> Any:
    """Data files by their absolute paths, which are relative to the task's."""
    if isinstance(files, Mapping):
        return {split: _beside(each, task) for split, each in files.items()}
    if isinstance(files, list):
        return [_beside(each, task) for each in files]
    path = task.parent / str(files)
    if not path.is_file():
        raise UsageError(f"the task {task} has no data file {path}")
    return str(path)
