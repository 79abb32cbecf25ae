"""An artifact that is not what its card says is told apart, whatever was replaced, edited or damaged, and however."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import zeropoint
from tests.support.tiny import make_checkpoint
from zeropoint import artifact
from zeropoint.cli.main import main
from zeropoint.errors import ArtifactError
from zeropoint.evaluate.model_description import describe
from zeropoint.files import identity, safetensors_file, tensor_digest
from zeropoint.files.shards import SINGLE
from zeropoint.files.tensor_digest import TensorDigest, digest_files
from zeropoint.quantization import quantize_checkpoint
from zeropoint.runtime import open_runner

TOKENS = np.arange(12)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("llama_tied", tmp_path_factory.mktemp("identity") / "model")


@pytest.fixture(scope="module")
def whole(model: Path) -> Path:
    quantize_checkpoint(model, model.parent / "whole", format="int8")
    return model.parent / "whole"


@pytest.fixture(scope="module")
def other(model: Path) -> Path:
    """Another model's artifact, of the same shapes."""
    source = Path(shutil.copytree(model, model.parent / "other-model"))
    tensors = {name: value[::-1].copy() for name, value in load_file(source / SINGLE).items()}
    save_file(tensors, source / SINGLE, {"format": "pt"})
    quantize_checkpoint(source, model.parent / "other", format="int8")
    return model.parent / "other"


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy"))


# -- the digest -----------------------------------------------------------------------------------


def test_writing_and_reading_give_the_same_digest(whole: Path) -> None:
    card = json.loads((whole / "zeropoint.json").read_text())
    assert card["digests"]["tensors"] == digest_files([whole / SINGLE])
    assert identity.verify(whole).known


@pytest.mark.parametrize(
    "format", ["int4", "bf16", "int5", "int4:g32:asym:bf16:a8g32", "int8:tensor:sym:fp32"]
)
def test_every_type_has_one_name(format: str, model: Path, tmp_path: Path) -> None:
    quantize_checkpoint(model, tmp_path / "a", format=format)
    identity.verify(tmp_path / "a")


def test_how_tensors_are_spread_over_files_does_not_matter(whole: Path, tmp_path: Path) -> None:
    tensors = load_file(whole / SINGLE)
    names = sorted(tensors, key=len)
    for number, part in enumerate((names[::2], names[1::2])):
        save_file({name: tensors[name] for name in part}, tmp_path / f"{number}.safetensors")
    assert digest_files(sorted(tmp_path.iterdir())) == digest_files([whole / SINGLE])


def test_all_that_a_tensor_is_counts() -> None:
    def of(*entries: tuple[Any, ...]) -> str:
        found = TensorDigest()
        for entry in entries:
            found.add(*entry)
        return found.hexdigest()

    plain = ("w", "I8", (2, 3), b"abcdef")
    changed = [
        ("v", "I8", (2, 3), b"abcdef"),
        ("w", "U8", (2, 3), b"abcdef"),
        ("w", "I8", (3, 2), b"abcdef"),
        ("w", "I8", (2, 3), b"abcdeg"),
    ]
    assert len({of(plain), *(of(each) for each in changed), of(), of(plain, plain)}) == 7
    assert of(plain, *changed) == of(*changed, plain)


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (b"", "has a header of"),
        (b"{{", "Expecting"),
        (b"[]", "no header"),
        (b'{"a": 1}', "has no type, shape and offsets for a"),
        (b'{"a": {"dtype": "I8", "shape": [1], "data_offsets": [0, 99]}}', "cut off within a"),
        (b'{"a": {"dtype": "I8", "shape": [1], "data_offsets": [3, 1]}}', "cut off within a"),
        (b'{"a": {"dtype": 8, "shape": [1], "data_offsets": [0, 1]}}', "damaged entry for a"),
        (b'{"a": {"dtype": "I8", "shape": [-1], "data_offsets": [0, 1]}}', "damaged entry for a"),
        (b'{"a": {"dtype": "I8", "shape": [true], "data_offsets": [0, 1]}}', "damaged entry for a"),
    ],
)
def test_a_damaged_header_is_one_sentence(header: bytes, words: str, tmp_path: Path) -> None:
    file = tmp_path / SINGLE
    file.write_bytes(len(header).to_bytes(8, "little") + header + b"12345678")
    with pytest.raises(ArtifactError, match=words):
        digest_files([file])
    file.write_bytes((1 << 62).to_bytes(8, "little") + header)
    with pytest.raises(ArtifactError, match="has a header of"):
        digest_files([file])


# -- replaced, edited, damaged --------------------------------------------------------------------


def in_place(path: Path, data: bytes) -> None:
    """Other bytes in the same file, of the same size where they are, and at the same time."""
    times = path.stat()
    with path.open("r+b") as file:
        file.write(data)
        file.truncate()
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def by_rename(path: Path, data: bytes) -> None:
    """As rsync and tar do it."""
    times = path.stat()
    beside = path.with_name("beside")
    beside.write_bytes(data)
    os.utime(beside, ns=(times.st_atime_ns, times.st_mtime_ns))
    os.replace(beside, path)


def by_link(path: Path, data: bytes) -> None:
    target = path.parent.parent / "target"
    target.write_bytes(data)
    path.unlink()
    path.symlink_to(target)


def other_weights(replace: Callable[[Path, bytes], None]) -> Callable[[Path, Path], None]:
    return lambda folder, other: replace(folder / SINGLE, (other / SINGLE).read_bytes())


def one_bit(folder: Path, other: Path) -> None:
    data = bytearray((folder / SINGLE).read_bytes())
    data[-100] ^= 1
    in_place(folder / SINGLE, bytes(data))


def edit_tensor(name: str, change: Callable[[np.ndarray], Any]) -> Callable[[Path, Path], None]:
    def edit(folder: Path, other: Path) -> None:
        tensors = load_file(folder / SINGLE)
        change(tensors[name])
        safetensors_file.write(folder / SINGLE, tensors)

    return edit


def exchanged(folder: Path, other: Path) -> None:
    """Two tensors of the same shape under each other's name."""
    tensors = load_file(folder / SINGLE)
    one, two = (f"model.layers.{n}.mlp.up_proj.weight" for n in (0, 1))
    tensors[one], tensors[two] = tensors[two], tensors[one]
    safetensors_file.write(folder / SINGLE, tensors)


def edit_json(name: str, change: Callable[[dict[str, Any]], Any]) -> Callable[[Path, Path], None]:
    def edit(folder: Path, other: Path) -> None:
        data = json.loads((folder / name).read_text())
        change(data)
        (folder / name).write_text(json.dumps(data))

    return edit


def plan_of(folder: Path, other: Path) -> None:
    """Inputs of 8 bits instead of 16: the same tensors, and other numbers."""
    text = (folder / "zeropoint.json").read_text()
    assert "a16token" in text
    (folder / "zeropoint.json").write_text(text.replace("a16token", "a8token"))


def card_of(folder: Path, other: Path) -> None:
    shutil.copy(other / "zeropoint.json", folder / "zeropoint.json")


WEIGHTS: dict[str, Callable[[Path, Path], None]] = {
    "replaced in place": other_weights(in_place),
    "replaced by rename": other_weights(by_rename),
    "replaced by a link": other_weights(by_link),
    "one bit": one_bit,
    "a scale doubled": edit_tensor(
        "model.layers.1.mlp.down_proj.weight_scale", lambda t: t.__setitem__(..., t * 2)
    ),
    "a norm's sign": edit_tensor("model.norm.weight", lambda t: t.__setitem__(0, -t[0])),
    "two tensors exchanged": exchanged,
}
CARD: dict[str, Callable[[Path, Path], None]] = {
    "a verdict written by hand": edit_json("zeropoint.json", lambda c: c.update(verdict={"passed": True})),
    "a verdict turned": edit_json("zeropoint.json", lambda c: c["verdict"].update(passed=True)),
    "a bound moved": edit_json("zeropoint.json", lambda c: c["quality"].update(kl=0.001)),
    "the plan": plan_of,
    "the source": edit_json("zeropoint.json", lambda c: c["source"].update(name="another")),
    "a note dropped": edit_json("zeropoint.json", lambda c: c.update(notes=["all is well"])),
    "another artifact's card": card_of,
    "the digest of the tensors": edit_json("zeropoint.json", lambda c: c["digests"].update(tensors="0" * 64)),
}
CONFIG: dict[str, Callable[[Path, Path], None]] = {
    "the rotation": edit_json(
        "config.json", lambda c: c.update(rope_parameters={"rope_theta": 5e5, "rope_type": "default"})
    ),
    "the norm": edit_json("config.json", lambda c: c.update(rms_norm_eps=0.1)),
}
EDITS = {**WEIGHTS, **CARD, **CONFIG}


def judged(folder: Path) -> None:
    """A verdict in the card, as `check` writes it."""
    artifact.update_card(folder, quality={"kl": 0.5}, verdict={"passed": False})


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS.keys())
def test_each_is_noticed_by_whoever_reads(
    edit: Callable[[Path, Path], None], copy: Path, other: Path, caplog: pytest.LogCaptureFixture
) -> None:
    judged(copy)
    assert identity.standing(copy).doubts == ()
    zeropoint.load(copy, threads=1)  # whatever is remembered of it is remembered now
    edit(copy, other)
    found = identity.standing(copy)
    assert found.doubts
    (_, described) = describe(str(copy), [str(copy)])
    assert described.doubts == found.doubts
    with pytest.raises(ArtifactError, match="is not what its card says"):
        identity.verify(copy)
    for engine in ("native", "universal"):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            open_runner(str(copy), threads=1, engine=engine)
        assert "is of another state" in caplog.text


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS.keys())
def test_each_is_refused_by_whoever_vouches(
    edit: Callable[[Path, Path], None],
    copy: Path,
    model: Path,
    other: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    judged(copy)
    edit(copy, other)
    before = (copy / "zeropoint.json").read_bytes()
    assert main(["check", str(copy), "--against", str(model)]) == 2
    assert main(["export", str(copy), "--to", "vllm", "-o", str(copy.parent / "out")]) == 2
    said = capsys.readouterr().err
    assert said.count("is not what its card says") == 2
    assert "Traceback" not in said
    assert (copy / "zeropoint.json").read_bytes() == before
    assert not (copy.parent / "out").exists()


@pytest.mark.parametrize("edit", WEIGHTS.values(), ids=WEIGHTS.keys())
@pytest.mark.parametrize("engine", ["native", "universal"])
def test_the_weights_that_are_there_are_run(
    engine: str, edit: Callable[[Path, Path], None], copy: Path, other: Path, tmp_path: Path
) -> None:
    before = zeropoint.load(copy, threads=1, engine=engine).logits(TOKENS)
    edit(copy, other)
    found = zeropoint.load(copy, threads=1, engine=engine).logits(TOKENS)
    fresh = Path(shutil.copytree(copy, tmp_path / "fresh"))  # known to no cache
    np.testing.assert_array_equal(found, zeropoint.load(fresh, threads=1, engine=engine).logits(TOKENS))
    assert not np.array_equal(found, before)


def test_what_is_remembered_is_believed_only_of_the_same_files(
    copy: Path, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that rest are read once; of files that changed a moment ago nothing is remembered."""
    reads: list[Any] = []
    real = tensor_digest.digest_files
    monkeypatch.setattr(tensor_digest, "digest_files", lambda files: reads.append(files) or real(files))
    want = identity.tensors_digest(copy)
    identity.tensors_digest(copy)
    assert len(reads) == 2
    monkeypatch.setattr(identity, "SETTLED_NS", 0)
    assert [identity.tensors_digest(copy) for _ in range(3)] == [want] * 3
    assert len(reads) == 3
    assert identity.tensors_digest(copy, verify=True) == want
    assert len(reads) == 4
    for replace in (in_place, by_rename, by_link):
        for folder in (other, copy.parent.parent / "none", copy):
            if folder == other:
                replace(copy / SINGLE, (other / SINGLE).read_bytes())
        assert identity.tensors_digest(copy) == real([other / SINGLE])


@pytest.mark.parametrize("how", ["text", "link", "others", "group", "other files"])
def test_a_memo_that_is_not_the_users_is_not_believed(
    how: str, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity, "SETTLED_NS", 0)
    want = identity.tensors_digest(copy)
    memo = identity._memo_path(copy)
    assert memo is not None
    data = json.loads(memo.read_text())
    memo.write_text(json.dumps(data | {"tensors": "0" * 64}))
    assert identity.tensors_digest(copy) == "0" * 64, "the memo is what is believed"
    if how == "text":
        memo.write_text("[")
    elif how == "link":
        memo.rename(memo.with_suffix(".moved"))
        memo.symlink_to(memo.with_suffix(".moved"))
    elif how == "others":
        if os.geteuid() != 0:
            pytest.skip("only root can give a file to another user")
        os.chown(memo, 12345, 12345)
    elif how == "group":
        memo.chmod(0o620)
    else:
        memo.write_text(json.dumps(data | {"tensors": "0" * 64, "files": []}))
    assert identity.tensors_digest(copy) == want


# -- the card -------------------------------------------------------------------------------------


def test_nothing_is_added_to_an_edited_card(copy: Path) -> None:
    edit_json("zeropoint.json", lambda c: c.update(notes=["edited"]))(copy, copy)
    with pytest.raises(ArtifactError, match="was edited"):
        artifact.update_card(copy, verdict={"passed": True})


def test_a_verdict_of_other_weights_is_not_written(copy: Path) -> None:
    with pytest.raises(ArtifactError, match="are not those of"):
        artifact.update_card(copy, verdict={"passed": True}, judged={"tensors": "0" * 64, "config": "0" * 64})


def older(folder: Path) -> Path:
    """The artifact as older releases wrote it."""
    edit_json("zeropoint.json", lambda c: c.pop("digests"))(folder, folder)
    return folder


def test_an_older_artifact_loads_and_gets_its_digests_with_a_verdict(
    copy: Path, model: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    older(copy)
    with caplog.at_level(logging.WARNING):
        zeropoint.load(copy, threads=1)
    assert not caplog.records
    assert not identity.standing(copy).known
    arguments = ["check", str(copy), "--against", str(model), "--tokens", "300", "--threads", "1"]
    assert main([*arguments, "--max-kl", "5"]) == 0
    assert "its card named no digests" in capsys.readouterr().out
    found = identity.verify(copy)
    assert found.known
    card = artifact.open(copy).card
    assert card["verdict"]["judged"] == {
        "tensors": found.tensors,
        "config": identity.config_digest(copy),
    }


@pytest.mark.parametrize("digests", [{}, {"tensors": "x"}, {"tensors": 1, "config": 2, "card": 3}, [], "x"])
def test_digests_that_are_none_are_refused(digests: Any, copy: Path) -> None:
    edit_json("zeropoint.json", lambda c: c.update(digests=digests))(copy, copy)
    with pytest.raises(ArtifactError, match="digests"):
        artifact.open(copy)


def test_another_order_of_the_same_json_is_no_edit(copy: Path) -> None:
    for name in ("zeropoint.json", "config.json"):
        data = json.loads((copy / name).read_text())
        (copy / name).write_text(json.dumps(dict(reversed(data.items())), indent=4))
    assert identity.verify(copy).doubts == ()
