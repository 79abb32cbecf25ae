"""The configuration of LiteLLM in docs/scale.md; `tests/serve/http/test_nginx.py` runs that of nginx."""

from __future__ import annotations

import re
from pathlib import Path

TEXT = (Path(__file__).parent.parent / "docs" / "scale.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)
    assert found
    return found.group(1)


def test_litellm_spreads_one_model_over_the_servers() -> None:
    assert len(set(re.findall(r"model_name: (\S+)", block("yaml")))) == 1
    assert len(set(re.findall(r"api_base: (\S+)", block("yaml")))) == 2
