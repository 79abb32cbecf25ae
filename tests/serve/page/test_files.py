"""The page's files: headers, types, names, accessible controls, and the pinned files of other projects."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from tests.serve.http.fake import client_of
from tests.serve.page.scoring import ScoringModel, make_models

PAGE = Path(str(files("zeropoint.serve") / "page"))
OURS = sorted(PAGE.glob("js/*.js"))


def test_files_have_types_policy_and_tags(models: list[ScoringModel]) -> None:
    types = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
    with client_of(*models) as client:
        for path in [PAGE / "index.html", *PAGE.rglob("*.js"), *PAGE.rglob("*.css"), *PAGE.rglob("*.svg")]:
            name = path.relative_to(PAGE).as_posix()
            response = client.get("/" if name == "index.html" else f"/page/{name}")
            assert response.content == path.read_bytes()
            assert response.headers["content-type"].startswith(types[path.suffix])
            assert response.headers["x-content-type-options"] == "nosniff"
            parts = response.headers["content-security-policy"].split("; ")
            policy = dict(part.split(" ", 1) for part in parts)
            assert policy["default-src"] == "'none'"
            assert {policy[key] for key in ("script-src", "style-src", "connect-src", "img-src")} == {
                "'self'"
            }
            again = client.get(
                response.url.path, headers={"If-None-Match": f'"x", W/{response.headers["etag"]}'}
            )
            assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize(
    "name",
    [
        "../http/page.py", "..%2f..%2ferrors.py", "%2e%2e/__init__.py", "/etc/passwd", "//etc/passwd", "vendor",
        "vendor/versions.json", "js/../../request.py", "", "js/main.js%00.html", "..\\http\\page.py",
    ],
)  # fmt: skip
def test_no_other_file_is_served(models: list[ScoringModel], name: str) -> None:
    with client_of(*models) as client:
        assert client.get(f"/page/{name}").status_code == 404


def test_the_page_opens_without_a_key_and_the_rest_does_not(models: list[ScoringModel]) -> None:
    with client_of(*models, api_keys=("secret",)) as client:
        assert client.get("/").status_code == 200
        assert client.get("/page/style.css").status_code == 200
        assert client.get("/compare/models").status_code == 401
        assert client.post("/compare/score", json={}).status_code == 401
        assert client.get("/compare/models", headers={"Authorization": "Bearer secret"}).status_code == 200


def test_models_have_bytes_and_format(fake_folder: Path) -> None:
    with client_of(*make_models(fake_folder, 2)) as client:
        found = client.get("/compare/models").json()["data"]
    assert [each["id"] for each in found] == ["fp16", "int8"]
    assert found[0] == {
        "id": "fp16", "format": "float32", "weights_bytes": 1000, "loaded": True, "memory_bytes": 2000,
        "max_model_len": 4096,
    }  # fmt: skip


class Elements(HTMLParser):
    """Lists the elements of a page as (tag, attributes, text inside)."""

    _VOID = frozenset({"meta", "link", "input", "path", "rect", "circle", "use", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, Any], list[str]]] = []
        self._open: list[tuple[str, dict[str, Any], list[str]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        labelled = any(element[0] == "label" for element in self._open)
        element = (tag, {**dict(attrs), "labelled": labelled}, [])
        self.found.append(element)
        if tag not in self._VOID:
            self._open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self._VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        for element in self._open:
            element[2].append(data)


ELEMENTS = Elements((PAGE / "index.html").read_text(encoding="utf-8")).found


def test_no_script_or_style_in_the_markup() -> None:
    for tag, attributes, _ in ELEMENTS:
        assert tag != "style"
        assert "style" not in attributes
        assert not [name for name in attributes if name.startswith("on")]
        assert tag != "script" or attributes.get("src")


def test_every_control_has_a_name() -> None:
    targets = {attributes.get("for") for tag, attributes, _ in ELEMENTS if tag == "label"}
    for tag, attributes, text in ELEMENTS:
        if tag in ("button", "a"):
            assert attributes.get("aria-label") or "".join(text).strip(), attributes
        if tag in ("input", "textarea", "select"):
            assert (
                attributes.get("aria-label") or attributes["labelled"] or attributes.get("id") in targets
            ), attributes
        if tag == "dialog":
            assert attributes.get("aria-labelledby")


def test_names_in_the_scripts_exist() -> None:
    ids = {attributes["id"] for _, attributes, _ in ELEMENTS if "id" in attributes}
    for path in OURS:
        text = path.read_text(encoding="utf-8")
        for name in re.findall(r'\$\("#([\w-]+)[" ]', text):
            assert name in ids, f"{path.name}: #{name}"
        for name in re.findall(r'from "(\.[^"]+)"', text):
            assert (path.parent / name).is_file(), f"{path.name}: {name}"
        for name in re.findall(r'icon(?:Button)?\("(\w+)"', text):
            assert f"i-{name}" in ids, f"{path.name}: {name}"


def test_vendored_files_are_the_pinned_ones() -> None:
    pinned = json.loads((PAGE / "vendor" / "versions.json").read_text())
    found = {path.relative_to(PAGE / "vendor").as_posix() for path in PAGE.glob("vendor/*/*")}
    assert found == {f"{name}/{file}" for name, entry in pinned.items() for file in entry["sha256"]}
    for name, entry in pinned.items():
        assert "LICENSE" in entry["sha256"]
        for file, digest in entry["sha256"].items():
            assert hashlib.sha256((PAGE / "vendor" / name / file).read_bytes()).hexdigest() == digest


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_scripts_are_sound_and_read_streams_in_any_pieces(tmp_path: Path) -> None:
    (tmp_path / "package.json").write_text('{"type": "module"}')
    for path in OURS:
        copied = tmp_path / path.name
        copied.write_text(path.read_text(encoding="utf-8"))
        subprocess.run(["node", "--check", copied], check=True, timeout=60)
    (tmp_path / "try.js").write_text(STREAM)
    done = subprocess.run(["node", tmp_path / "try.js"], capture_output=True, text=True, timeout=60)
    assert (done.stdout.strip(), done.stderr) == ("all pieces read", "")


#: A script for node, which reads one stream of events cut at every byte, and one stream that ends early.
STREAM = r"""
import assert from "node:assert/strict";
import { chat } from "./api.js";

globalThis.sessionStorage = globalThis.localStorage = { getItem: () => null };
const event = (content, token_ids) =>
  `data: ${JSON.stringify({ choices: [{ delta: { content }, token_ids }] })}\r\n\r\n`;
const usage = 'data:{"choices":[],\ndata: "usage":{"completion_tokens":3}}\n\n';
const whole = `: comment\n\n${event("Größe", [1, 2])}${event(" 日本", [3])}${usage}data: [DONE]\n\n`;
const bytes = new TextEncoder().encode(whole);

async function read(parts) {
  globalThis.fetch = async () => new Response(new ReadableStream({
    start(controller) {
      for (const part of parts) controller.enqueue(part);
      controller.close();
    },
  }));
  let text = "";
  const ids = [];
  let usage = null;
  for await (const one of chat({ model: "m", messages: [], settings: {} })) {
    text += one.text;
    ids.push(...(one.tokens ?? []));
    usage = one.usage ?? usage;
  }
  return { text, ids, usage };
}

const expected = { text: "Größe 日本", ids: [1, 2, 3], usage: { completion_tokens: 3 } };
for (let cut = 0; cut <= bytes.length; cut += 1) {
  assert.deepEqual(await read([bytes.slice(0, cut), bytes.slice(cut)]), expected, `cut at ${cut}`);
}
assert.deepEqual(await read([...bytes].map((byte) => Uint8Array.of(byte))), expected);
await assert.rejects(read([bytes.slice(0, 90)]), { kind: "cut" });
console.log("all pieces read");
"""
