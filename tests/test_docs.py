"""The documents name files, modules, functions and sections that exist. Sources are parsed, never imported."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "zeropoint"
FOLDERS = ("src", "native", "tests", "docs", "benchmarks", "scripts", "examples")
DOCUMENTS = [
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs" / "decisions").glob("*.md")),
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "benchmarks" / "README.md",
]

#: Source files have these endings. Other names (`config.json`, `model.onnx`) may be a user's files.
SOURCES = (".py", ".h", ".cpp", ".md", ".toml", ".j2")

#: Modules whose names documents also give to values.
VARIABLES = {"config", "model", "tokenizer"}

#: A span of code, without its backticks.
SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
PATH = re.compile(r"[\w.<>*-]+(?:/[\w.<>*-]+)*/?")
DOTTED = re.compile(r"(?<![\w./-])([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+)")
IMPORT = re.compile(r"^\s*from (zeropoint[\w.]*) import ([\w, ]+)", re.MULTILINE)
NAME_IN_FILE = re.compile(r"`(\w+)`(?: and `(\w+)`)?\s+(?:in|of)\s+`([\w/]+\.(?:py|h|cpp))`")
LINK = re.compile(r"\]\(([^()\s]+)\)")
HEADING = re.compile(r"^#+ +(.*?) *$", re.MULTILINE)
FENCE = re.compile(r"^( *)```.*?^\1```", re.MULTILINE | re.DOTALL)
C_NAME = re.compile(r"\b(?:zp|ZP)_\w+")


# -- what there is --------------------------------------------------------------------------------


@cache
def paths() -> frozenset[str]:
    """Return every file and folder of the repository, `/` before each and behind each folder."""
    found = {f"/{entry.name}" for entry in ROOT.iterdir() if entry.is_file()}
    for top in FOLDERS:
        for folder, names, files in os.walk(ROOT / top):
            names[:] = [name for name in names if name != "__pycache__"]
            inside = f"/{Path(folder).relative_to(ROOT).as_posix()}/"
            found.add(inside)
            found.update(inside + name for name in files)
    return frozenset(found)


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def bound(body: list[ast.stmt]) -> Iterator[tuple[str, ast.stmt]]:
    """Yield each name that statements bind, with its statement."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name, node
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((alias.asname or alias.name, node) for alias in node.names)
        elif isinstance(node, ast.AnnAssign | ast.Assign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (
                (name.id, node)
                for target in targets
                for name in ast.walk(target)
                if isinstance(name, ast.Name)
            )
        elif isinstance(node, ast.If | ast.Try | ast.With):
            yield from bound(node.body)
            yield from bound(getattr(node, "orelse", []))


@cache
def names_of(path: Path) -> dict[str, ast.stmt]:
    """Return the names at the top of a module; of the package's own, its lazy ones too."""
    names = dict(bound(tree(path).body))
    if path == PACKAGE / "__init__.py":
        homes = names["_HOMES"]
        assert isinstance(homes, ast.Assign)
        names |= dict.fromkeys(ast.literal_eval(homes.value), homes)
    return names


@cache
def classes() -> dict[str, tuple[set[str], list[str]]]:
    """Return the attributes and the bases of each class of the package by its name; classes of one name together."""
    found: dict[str, tuple[set[str], list[str]]] = {}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ClassDef):
                own, bases = found.setdefault(node.name, (set(), []))
                own.update(name for name, _ in bound(node.body))
                own.update(
                    each.attr
                    for each in ast.walk(node)
                    if isinstance(each, ast.Attribute)
                    and isinstance(each.value, ast.Name)
                    and each.value.id == "self"
                )
                bases += [base.id if isinstance(base, ast.Name) else "" for base in node.bases]
    return found


def has_attribute(name: str, attribute: str) -> bool:
    """Return whether a class or one of its bases has the attribute. Bases of other packages may have any."""
    own, bases = classes()[name]
    if attribute in own:
        return True
    bases = [base for base in bases if base not in ("Protocol", "Generic")]
    return any(base not in classes() or has_attribute(base, attribute) for base in bases)


def missing(dotted: str) -> str | None:
    """Return the part of a dotted name below the package that does not exist, None where all of it does."""
    at, parts = PACKAGE, dotted.split(".")
    for i, part in enumerate(parts):
        if (at / part).is_dir() and (at / part / "__init__.py").is_file():
            at /= part
            continue
        if (at / f"{part}.py").is_file():
            module, rest = at / f"{part}.py", parts[i + 1 :]
        else:
            module, rest = at / "__init__.py", parts[i:]
        if not rest:
            return None
        if rest[0] not in names_of(module):
            return rest[0]
        node = names_of(module)[rest[0]]
        if len(rest) > 1 and isinstance(node, ast.ClassDef) and not has_attribute(node.name, rest[1]):
            return f"{rest[0]}.{rest[1]}"
        return None
    return None


def anchors(path: Path) -> set[str]:
    """Return the anchors that GitHub gives a document's headings."""
    found: dict[str, int] = {}
    names = set()
    for heading in HEADING.findall(FENCE.sub("", path.read_text(encoding="utf-8"))):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        count = found.get(slug, 0)
        found[slug] = count + 1
        names.add(slug if count == 0 else f"{slug}-{count}")
    return names


# -- what the documents say -----------------------------------------------------------------------


def is_path(span: str) -> bool:
    """Return whether a span of code names a file or folder of the repository."""
    if PATH.fullmatch(span) is None:
        return False
    in_folder = "/" in span and span.split("/")[0] in (*FOLDERS, *package_names())
    return in_folder or span.endswith(SOURCES) or (span.endswith("/") and not span.startswith("."))


@cache
def package_names() -> frozenset[str]:
    """Return the names of the package's own folders and modules."""
    return frozenset(
        path.stem for path in PACKAGE.iterdir() if path.suffix in ("", ".py") and path.name[0] != "_"
    )


def exists(path: str) -> bool:
    """Return whether a path is one of the repository's, or the end of one; `<name>` and `*` stand for any name."""
    pattern = f"*/{re.sub('<[^>]*>', '*', path)}"
    if "*" in pattern[1:]:
        return any(fnmatchcase(each, pattern) for each in paths())
    return any(each.endswith((pattern[1:], f"{pattern[1:]}/")) for each in paths())


def dotted_names(text: str) -> Iterator[str]:
    """Yield the dotted names below the package: of `zeropoint.` anywhere, of its modules in spans and plain fences."""
    for name in DOTTED.findall(text):
        if name.startswith("zeropoint.") and not name.endswith(".json"):
            yield name.removeprefix("zeropoint.")
    for module, names in IMPORT.findall(text):
        yield from (f"{module}.{name.strip()}".removeprefix("zeropoint.") for name in names.split(","))
    spans = SPAN.findall(FENCE.sub("", text))
    plain = [fence.group() for fence in FENCE.finditer(text) if fence.group().lstrip().startswith("```\n")]
    for name in (name for span in (*spans, *plain) for name in DOTTED.findall(span)):
        if name.split(".")[0] in package_names() and not name.endswith((*SOURCES, ".json")):
            yield name


@cache
def modules() -> dict[str, list[Path]]:
    """Return the modules that lie deeper in the package, by their last name."""
    found: dict[str, list[Path]] = {}
    for path in PACKAGE.rglob("*/*.py"):
        if path.stem not in (*package_names(), *VARIABLES):
            found.setdefault(path.stem, []).append(path)
    return found


def short_names(text: str) -> Iterator[tuple[str, str]]:
    """Yield `module.name` of modules that lie deeper in the package, where that is all of a span."""
    for span in SPAN.findall(FENCE.sub("", text)):
        module, dot, name = span.partition(".")
        if dot and name.isidentifier() and module in modules() and f".{name}" not in (*SOURCES, ".json"):
            yield module, name


def names_in_files(text: str) -> Iterator[tuple[str, str]]:
    """Yield each name that a text places in a file, and the file: "`NAME` in `folder/file.py`"."""
    for first, second, path in NAME_IN_FILE.findall(FENCE.sub("", text)):
        yield from ((name, path) for name in (first, second) if name)


def is_in(name: str, path: str) -> bool:
    """Return whether a file whose path ends so has the name; true for absent files, which another check finds."""
    files = [ROOT / each[1:] for each in paths() if each.endswith(f"/{path}")]
    return not files or any(re.search(rf"\b{name}\b", file.read_text(encoding="utf-8")) for file in files)


def attributes(text: str) -> Iterator[tuple[str, str]]:
    """Yield `Class.attribute` of the package's classes."""
    for span in SPAN.findall(FENCE.sub("", text)):
        for name in DOTTED.findall(span):
            first, second = name.split(".")[:2]
            if first[0].isupper() and first in classes():
                yield first, second


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_document_names_what_exists(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    header = (ROOT / "native" / "include" / "zeropoint.h").read_text(encoding="utf-8")
    wrong = [
        f"`{span}`: no such path"
        for span in SPAN.findall(FENCE.sub("", text))
        if is_path(span) and not exists(span)
    ]
    wrong += [
        f"{name}: there is no {part}" for name in dotted_names(text) if (part := missing(name)) is not None
    ]
    wrong += [
        f"{name}.{part}: no such attribute"
        for name, part in attributes(text)
        if not has_attribute(name, part)
    ]
    wrong += [
        f"{module}.{name}: in no module of that name"
        for module, name in short_names(text)
        if not any(name in names_of(path) for path in modules()[module])
    ]
    wrong += [f"{name} is not in {path}" for name, path in names_in_files(text) if not is_in(name, path)]
    c_names = {name for name in C_NAME.findall(text) if not name.endswith("_")}
    wrong += [f"{name}: not in zeropoint.h" for name in c_names if re.search(rf"\b{name}\b", header) is None]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_of_a_document_lead_somewhere(document: Path) -> None:
    wrong = []
    for link in LINK.findall(FENCE.sub("", document.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        if not target.exists():
            wrong.append(f"{link}: there is no {target.relative_to(ROOT)}")
        elif anchor and anchor not in anchors(target):
            wrong.append(f"{link}: {target.name} has no such heading")
    assert not wrong, "\n".join(wrong)


def test_documents_that_sources_name_exist() -> None:
    wrong = []
    for top in ("src", "native", "tests", "benchmarks", "scripts"):
        for path in (ROOT / top).rglob("*"):
            if path.suffix in (".py", ".h", ".cpp") and path != Path(__file__):
                named = re.findall(r"(?<![\w/])docs/[\w./-]+\.md", path.read_text(encoding="utf-8"))
                wrong += [
                    f"{path.relative_to(ROOT)}: {name}" for name in named if not (ROOT / name).is_file()
                ]
    assert not wrong, "\n".join(wrong)


def test_wrong_names_are_found() -> None:
    assert missing("runtime.native.parcel") == "parcel"
    assert missing("values.scheme.Scheme.colour") == "Scheme.colour"
    assert missing("kernels.BACKENDS") is None
    assert missing("load") is None
    assert exists("models/families/<model_type>.py")
    assert exists("core/layout.h")
    assert not is_in("no_such_name", "core/isa.cpp")
    assert list(names_in_files("`a` and\n`b` in `x.py`".replace("\n", " "))) == [("a", "x.py"), ("b", "x.py")]
    assert not exists("models/record.py")
    assert is_path("quantization/taps.py")
    assert not is_path("config.json")
    assert "the-numbers" in anchors(ROOT / "docs" / "architecture.md")
