"""The environment of a measurement: the versions of Python and of packages."""

from __future__ import annotations

import platform
from importlib import metadata

_PACKAGES = ("zeropoint", "torch", "transformers", "numpy")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the installed packages that results depend on."""
    installed = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return installed
