"""Every folder of `zeropoint.runtime` is an engine with the same interface, found by its name."""

from __future__ import annotations

import inspect
import logging
import pkgutil
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from tests.evaluate.conftest import text_file  # noqa: F401
from tests.models.reads import tiny_fields
from zeropoint import runtime
from zeropoint.errors import UnsupportedError, UsageError
from zeropoint.evaluate import compare
from zeropoint.models.families import engine_of
from zeropoint.runtime import DTYPES, engines, open_runner, prepare
from zeropoint.runtime.engine import Engine, OpenOptions

Tiny = Callable[[str], Path]
FOLDERS = [each.name for each in pkgutil.iter_modules(runtime.__path__) if each.ispkg]
DATA = list(Engine.__annotations__)
FUNCTIONS = [name for name, _ in inspect.getmembers(Engine, inspect.isfunction) if name[0] != "_"]
DUMMY = Path(__file__).parent / "dummy_engines"


@pytest.fixture
def dummy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder `dummy_engines/dummy` is an engine too."""
    monkeypatch.setattr(runtime, "__path__", [*runtime.__path__, str(DUMMY)])
    for name in ("zeropoint.runtime.dummy", "zeropoint.runtime.dummy.engine"):
        monkeypatch.delitem(sys.modules, name, raising=False)


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_has_the_interface(folder: str, tmp_path: Path) -> None:
    module = import_module(f"zeropoint.runtime.{folder}.engine")
    assert {name for name in DATA if not hasattr(module, name)} == set()
    assert isinstance(module.ORDER, int)
    assert isinstance(module.EXCLUSIVE, bool)
    assert isinstance(module.REFERENCE, bool)
    assert module.NAME
    assert module.SUMMARY
    assert set(module.DTYPES) <= set(DTYPES)
    for name in FUNCTIONS:
        expected = list(inspect.signature(getattr(Engine, name)).parameters)[1:]
        assert list(inspect.signature(getattr(module, name)).parameters) == expected, name
    assert isinstance(module.refusal(tmp_path / "missing", OpenOptions()), str)
    memory = module.memory()
    memory.reset_peak()
    measured = memory.measure()
    assert measured.peak_bytes >= measured.resident_bytes >= 0
    assert set(measured.to_json()) == {"resident_bytes", "anonymous_bytes", "file_bytes", "peak_bytes"}
    timing = module.timing()
    assert timing is None or callable(timing.token_seconds)


def test_names_and_places_are_unique() -> None:
    everyone = engines()
    assert len({each.NAME for each in everyone}) == len({each.ORDER for each in everyone}) == len(FOLDERS)
    assert sum(each.REFERENCE for each in everyone) == 1
    labels = [name for each in everyone for name in each.LABELS]
    assert len(labels) == len(set(labels))


def test_the_command_line_has_the_names_that_it_had() -> None:
    assert runtime.ENGINES == ("auto", "native", "universal")
    assert runtime.reference_engine().NAME == "universal"
    assert runtime.fitting_engine().NAME == "native"
    with pytest.raises(AttributeError, match="NOTHING"):
        runtime.NOTHING  # noqa: B018


def test_cards_name_engines_that_exist() -> None:
    configs = ({}, {"is_causal": False})
    assert {engine_of({**tiny_fields("qwen2"), **each})["name"] for each in configs} <= set(runtime.ENGINES)


def test_finding_engines_imports_no_library() -> None:
    code = "import sys; from zeropoint.runtime import engines; engines(); print([n for n in HEAVY if n in sys.modules])"
    code = code.replace("HEAVY", "('torch', 'transformers', 'onnxruntime', 'llama_cpp')")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.usefixtures("dummy")
def test_a_new_folder_is_an_engine(tiny_checkpoint: Tiny) -> None:
    assert runtime.ENGINES == ("auto", "native", "dummy", "universal")
    folder = tiny_checkpoint("llama_tied")
    assert open_runner(folder, engine="dummy").engine == "dummy"
    assert open_runner(folder, threads=1).engine == "native"
    with pytest.raises(UsageError, match="dummy engine runs a model in its own types"):
        open_runner(folder, engine="dummy", dtype="float32")
    meter = prepare(folder, engine="dummy")
    assert meter.measure().to_json()["resident_bytes"] == 7


@pytest.mark.usefixtures("dummy")
def test_an_engine_that_refuses_leaves_the_model_to_the_next(
    tiny_checkpoint: Tiny, caplog: pytest.LogCaptureFixture
) -> None:
    from zeropoint.runtime.dummy import engine  # type: ignore[import-not-found]

    from zeropoint.runtime.native import engine as native

    folder = tiny_checkpoint("llama_tied")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "refusal", lambda path, options: "natively not")
        with caplog.at_level(logging.WARNING):
            runner = open_runner(folder, threads=1)
        assert (runner.engine, runner.engine_reason) == ("dummy", "natively not")
        assert "runs on a dummy: natively not" in caplog.text
        with pytest.raises(UnsupportedError, match="natively not"):
            open_runner(folder, engine="native")
        patch.setattr(engine, "REFUSAL", "neither this")
        runner = open_runner(folder, threads=1)
        assert (runner.engine, runner.engine_reason) == ("transformers", "natively not")
        with pytest.raises(UnsupportedError, match="neither this"):
            open_runner(folder, engine="dummy")


@pytest.mark.usefixtures("dummy")
def test_compare_measures_with_a_new_engine(
    tiny_checkpoint: Tiny,
    monkeypatch: pytest.MonkeyPatch,
    text_file: str,  # noqa: F811
    tmp_path: Path,
) -> None:
    from zeropoint.evaluate.worker import client
    from zeropoint.quantization import quantize_checkpoint
    from zeropoint.render.terminal import plain_text

    model = tiny_checkpoint("llama_tied")
    worker = (sys.executable, str(DUMMY / "worker.py"))
    monkeypatch.setitem(client.call.__kwdefaults__, "command", worker)
    quantize_checkpoint(model, tmp_path / "int8", format="int8")
    report = compare(
        str(model),
        [str(tmp_path / "int8")],
        text=text_file,
        tokens=64,
        context=32,
        threads=1,
        prompts=[],
        prompt_tokens=8,
        new_tokens=4,
        engine="dummy",
    )
    assert report.extra["engines"]["int8"]["engine"] == "dummy"
    assert report.find("int8", "resident_bytes").value == 7
    assert "Run by a dummy: int8." in plain_text(report)
    assert np.isfinite(report.find("int8", "kl_divergence").value)
