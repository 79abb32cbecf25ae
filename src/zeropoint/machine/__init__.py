"""The machine: its processor and memory (`detect`), its usable cores (`cores`), and freed memory (`heap`)."""

from typing import TYPE_CHECKING

from zeropoint._moved import old_attributes

if not TYPE_CHECKING:
    __getattr__ = old_attributes(__name__)
