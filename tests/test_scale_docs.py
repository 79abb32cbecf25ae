"""The configurations in docs/scale.md: nginx takes its own, and both name two servers of one model."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

TEXT = (Path(__file__).parent.parent / "docs" / "scale.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)
    assert found
    return found.group(1)


def test_nginx_takes_its_configuration(tmp_path: Path) -> None:
    nginx = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
    if nginx is None:
        pytest.skip("nginx is not installed")
    file = tmp_path / "nginx.conf"
    file.write_text(f"pid {tmp_path / 'pid'};\nerror_log stderr;\n{block('nginx')}")
    done = subprocess.run([nginx, "-t", "-c", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_litellm_spreads_one_model_over_the_servers() -> None:
    assert len(set(re.findall(r"model_name: (\S+)", block("yaml")))) == 1
    assert len(set(re.findall(r"api_base: (\S+)", block("yaml")))) == 2
