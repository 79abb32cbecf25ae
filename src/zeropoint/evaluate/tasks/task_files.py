"""Tasks of lm-evaluation-harness from local YAML files: load them, and record which items a model gets right.

A task file can run code in several ways: `!function` imports Python from the file's folder, `include` reads other
files, unknown metrics are downloaded as scripts, and Jinja templates reach every Python object. Without
`allow_code`, a task file is therefore *data* only: descriptive keys, data files on this disk, metrics that lm-eval
itself computes, and templates in a sandbox.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from zeropoint.errors import UsageError, reason
from zeropoint.evaluate.tasks import lm_eval_model
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
# Metrics of accuracy in order of preference, for tasks with several metrics per item.
_PREFERRED = ("acc", "exact_match", "acc_norm")
_FEWSHOT_SEED = 1234


def task_files(paths: Sequence[str | Path]) -> list[Path]:
    """Return the absolute paths of the task files in `paths`: YAML files, and the YAML files of folders.

    Files of a folder that begin with an underscore are skipped, because other task files include them. Raises
    `UsageError` if a path is neither a YAML file nor a folder with task files.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix in SUFFIXES and not p.name.startswith("_"))
            if not inside:
                raise UsageError(f"the folder {path} holds no task: no .yaml file")
            files += inside
        elif path.suffix in SUFFIXES and path.is_file():
            files.append(path)
        else:
            raise UsageError(f"there is no task file or folder {path} (lm-eval's YAML)")
    if not files:
        raise UsageError("no task is named")
    return [path.resolve() for path in files]


def answer(
    runner: Runner,
    tasks: Mapping[str, Any],
    *,
    limit: int | None = None,
    progress: Callable[[float], None] | None = None,
) -> dict[str, dict[str, Any]]:
    """Let a runner answer the first `limit` items of each task from `load`.

    Return `{task: {"metric", "items", "correct"}}`: `items` are digests of question and target, `correct` is 0 or 1
    for each item. Raises `UsageError` if no metric of a task scores items as 0 or 1.
    """
    from lm_eval import evaluate

    lm = lm_eval_model.adapter(runner, progress=progress)
    results = evaluate(
        lm=lm,
        task_dict={"tasks": dict(tasks), "groups": {}, "group_map": {}},
        limit=limit,
        bootstrap_iters=0,
        log_samples=True,
        confirm_run_unsafe_code=False,
    )
    return {name: _correctness(name, results["samples"][name]) for name in tasks}


def _correctness(name: str, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the metric, item digests and correctness of one task, in file order; of several filters the first."""
    rows = [s for s in samples if s.get("filter") == samples[0].get("filter")]
    rows.sort(key=lambda sample: sample["doc_id"])
    metrics = [*_PREFERRED, *(m for m in rows[0].get("metrics", ()) if m not in _PREFERRED)]
    for metric in metrics:
        values = [sample.get(metric) for sample in rows]
        if all(isinstance(v, int | float) and v in (0, 1) for v in values):
            items = [f"{s['doc_hash']}:{s['target_hash']}" for s in rows]
            return {"metric": metric, "items": items, "correct": [int(v or 0) for v in values]}
    raise UsageError(
        f"task {name} calls no item right or wrong (metrics {', '.join(metrics)}): it cannot be paired"
    )


def load(files: Sequence[str | Path], *, allow_code: bool = False) -> dict[str, Any]:
    """Load task files and their data, and return lm-eval's task objects by name.

    Raises `UsageError` if lm-eval is missing, a file cannot be read, two tasks have the same name, or a file needs code
    and `allow_code` is false.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    if not allow_code:  # before the imports below, because `datasets` and `evaluate` read this on import
        os.environ |= {"HF_DATASETS_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1"}
    try:
        from lm_eval import utils
        from lm_eval.tasks import TaskManager
    except ModuleNotFoundError as cause:
        raise UsageError(lm_eval_model.MISSING) from cause
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
                # With the task's name, lm-eval finds the file itself and resolves its `!function` entries.
                manager = TaskManager(include_path=str(file.parent) if code else None, include_defaults=False)
                loaded = manager.load([spec])["tasks"]
            except Exception as cause:  # any error of lm-eval or of the task's own code
                raise UsageError(f"the task {file} does not load: {type(cause).__name__}: {cause}") from cause
            for name, task in loaded.items():
                if name in tasks:
                    raise UsageError(f"two tasks are called {name}")
                tasks[name] = _with_defaults(task)
    return tasks


def _with_defaults(task: Any) -> Any:
    """Set what lm-eval's own command line sets: no few-shot examples by default, and a fixed few-shot seed."""
    if task.get_config("num_fewshot") is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=_FEWSHOT_SEED)
    return task


def _sandbox(environment: Any) -> Any:
    """Return a sandboxed copy of lm-eval's Jinja environment."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    safe = ImmutableSandboxedEnvironment(
        loader=environment.loader,
        undefined=environment.undefined,
        keep_trailing_newline=environment.keep_trailing_newline,
    )
    safe.filters = environment.filters
    return safe


def _parse(file: Path) -> tuple[dict[str, Any], str]:
    """Return a task file's content, and why the file needs code to run ("" for plain data)."""
    import yaml  # comes with lm-eval

    functions: list[str] = []

    class Loader(yaml.SafeLoader):  # type: ignore[misc,unused-ignore]
        """A YAML loader that records `!function` names without importing the functions."""

    Loader.add_constructor("!function", lambda _loader, node: functions.append(str(node.value)))
    try:
        with file.open(encoding="utf-8") as text:
            config = yaml.load(text, Loader)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UsageError(f"the task {file} cannot be read: {reason(error)}") from error
    if not isinstance(config, dict) or not isinstance(config.get("task"), str):
        raise UsageError(f"{file} is not a task: it needs a name, `task: NAME`")
    if functions:
        return config, f"runs Python code (!function {', '.join(functions)})"
    return config, _beyond_data(config)


def _beyond_data(config: Mapping[str, Any]) -> str:
    """Return what a task asks for beyond plain data and templates, or ""."""
    if unknown := sorted(set(config) - _KEYS):
        return f"asks for more than data and templates ({', '.join(map(str, unknown))})"
    if config.get("dataset_path") not in _DATA:
        return (
            f"reads its data from {config.get('dataset_path')!r}, not from {', '.join(sorted(_DATA))} files"
        )
    if set(config.get("dataset_kwargs") or ()) != {"data_files"}:
        return "names its data in another way than `dataset_kwargs: {data_files: ...}`"
    for metric in config.get("metric_list") or ():
        if (
            not isinstance(metric, Mapping)
            or metric.get("metric") not in _METRICS
            or set(metric) - _METRIC_KEYS
        ):
            return f"has a metric that is not plainly one of {', '.join(sorted(_METRICS))}"
    return ""


def _with_data(config: Mapping[str, Any], file: Path, cache: str) -> dict[str, Any]:
    """Return the task's config with absolute data paths and `cache` as the cache folder of its data."""
    files = _beside(config["dataset_kwargs"]["data_files"], file)
    return {**config, "dataset_kwargs": {"data_files": files, "cache_dir": cache}}


def _beside(files: Any, task: Path) -> Any:
    """Return absolute paths of data files, which are relative to the task file's folder.

    Raises `UsageError` if a file is missing.
    """
    if isinstance(files, Mapping):
        return {split: _beside(each, task) for split, each in files.items()}
    if isinstance(files, list):
        return [_beside(each, task) for each in files]
    path = task.parent / str(files)
    if not path.is_file():
        raise UsageError(f"the task {task} has no data file {path}")
    return str(path)
