"""The machine: its processor and memory (`detect`), cores (`cores`), freed memory (`heap`), other load (`load`)."""

from typing import TYPE_CHECKING

from zeropoint._moved import old_attributes

if not TYPE_CHECKING:
    __getattr__ = old_attributes(__name__)
