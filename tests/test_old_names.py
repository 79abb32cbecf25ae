"""Modules and classes answer to the names that they had before they moved."""

from __future__ import annotations

import importlib
import sys

import pytest

from zeropoint._moved import MOVED, RENAMED


@pytest.mark.parametrize(("old", "new"), MOVED.items())
def test_an_old_name_warns_and_gives_the_module(old: str, new: str) -> None:
    sys.modules.pop(f"zeropoint.{old}", None)
    with pytest.warns(DeprecationWarning, match=f"zeropoint.{old} is now zeropoint.{new}"):
        module = importlib.import_module(f"zeropoint.{old}")
    assert module is importlib.import_module(f"zeropoint.{new}")
    assert module.__name__ == f"zeropoint.{new}"
    assert module.__spec__ is not None
    assert module.__spec__.name == f"zeropoint.{new}"


OLD_CLASSES = [
    ("companions", "companion_files"),
    ("models.record", "DecoderRecord"),
    ("quantization.journal", "Journal"),
    ("quantization.taps", "Seen"),
    ("runtime.foreign", "Foreign"),
    ("runtime.native.parcel", "Parcel"),
    ("runtime.native.record", "DecoderRecord"),
]


@pytest.mark.parametrize(("old", "name"), OLD_CLASSES)
def test_an_old_class_name_warns_and_gives_the_class(old: str, name: str) -> None:
    sys.modules.pop(f"zeropoint.{old}", None)
    new = RENAMED[MOVED[old]][name]
    with pytest.warns(DeprecationWarning, match="is now"):
        module = importlib.import_module(f"zeropoint.{old}")
    with pytest.warns(DeprecationWarning, match=f"{name} of zeropoint.{MOVED[old]} is now {new}"):
        assert getattr(module, name) is getattr(module, new)
    with pytest.raises(AttributeError, match="nothing"):
        module.nothing  # noqa: B018


@pytest.mark.parametrize("module", ["quantization", "quantization.streaming"])
def test_a_class_that_was_renamed_in_place(module: str) -> None:
    home = importlib.import_module(f"zeropoint.{module}")
    with pytest.warns(DeprecationWarning, match=f"Progress of zeropoint.{module} is now WeightDone"):
        assert home.Progress is home.WeightDone
    with pytest.raises(AttributeError, match="nothing"):
        home.nothing  # noqa: B018


def test_submodules_follow() -> None:
    sys.modules.pop("zeropoint.runtime.foreign.llama_cpp", None)
    with pytest.warns(DeprecationWarning, match="llama_cpp is now"):
        module = importlib.import_module("zeropoint.runtime.foreign.llama_cpp")
    assert module.__name__ == "zeropoint.runtime.external.llama_cpp"


def test_machine_is_a_package_now_and_still_has_its_class() -> None:
    machine = importlib.import_module("zeropoint.machine")
    with pytest.warns(DeprecationWarning, match="zeropoint.machine.detect"):
        assert machine.Machine is importlib.import_module("zeropoint.machine.detect").Machine
    with pytest.raises(AttributeError, match="nothing"):
        machine.nothing  # noqa: B018


def test_other_names_are_still_missing() -> None:
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("zeropoint.nothing")
