"""The machine: its processor and memory (`detect`), usable cores (`cores`), return of freed memory to the system
(`heap`), and the load of other programs (`load`).
"""

from typing import TYPE_CHECKING

from zeropoint._moved import old_attributes

if not TYPE_CHECKING:
    __getattr__ = old_attributes(__name__)
