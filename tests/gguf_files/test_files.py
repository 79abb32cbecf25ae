"""Files as people bring them: in parts, with the vocabularies and stop tokens of published models."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from tokenizers import Tokenizer

from tests.support import tiny
from zeropoint import artifact, exporters
from zeropoint.checkpoint import open_checkpoint
from zeropoint.errors import CheckpointError, UnsupportedError
from zeropoint.gguf.file import GgufFile
from zeropoint.gguf.model import GgufModel
from zeropoint.gguf.vocabulary.sentencepiece import merges
from zeropoint.gguf.vocabulary.to_tokenizer import HeaderTokenizer
from zeropoint.quantization import quantize_checkpoint

NORMAL, UNKNOWN, CONTROL, USER, BYTE = 1, 2, 3, 4, 6


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("file")
    model = tiny.make_checkpoint("llama_untied", folder / "model")
    tiny.write_tokenizer(model, merges=[("t", "h")])
    quantize_checkpoint(model, folder / "artifact", format="int8")
    exporters.export(artifact.open(folder / "artifact"), "gguf", folder / "m.gguf")
    return folder / "m.gguf"


def split(file: Path, folder: Path) -> list[Path]:
    """The model in parts of 9 tensors, as llama.cpp's tools split one."""
    reader = gguf.GGUFReader(file)
    writer = gguf.GGUFWriter(folder / "x.gguf", "llama", split_max_tensors=9)
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture":
            continue
        if field.types[0] == gguf.GGUFValueType.ARRAY:
            writer.add_array(key, field.contents())
        else:
            writer.add_key_value(key, field.contents(), field.types[0])
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(folder.glob("x-*.gguf"))


def test_any_part_opens_the_whole_model(file: Path, tmp_path: Path) -> None:
    parts, whole = split(file, tmp_path), GgufModel(file)
    assert len(parts) == 3
    for part in parts:
        opened = GgufModel(part)
        assert opened.files == tuple(parts)
        assert (opened.config, opened.tensors, opened.nbytes) == (whole.config, whole.tensors, whole.nbytes)
        for name in whole.tensors:
            np.testing.assert_array_equal(opened.floats(name), whole.floats(name))
    assert open_checkpoint(tmp_path).source_nbytes() == whole.nbytes


@pytest.mark.parametrize("given", [0, 2])
def test_a_missing_part_is_named(given: int, file: Path, tmp_path: Path) -> None:
    parts = split(file, tmp_path)
    parts[1].unlink()
    with pytest.raises(CheckpointError, match=r"part \d of 3 .*x-00002-of-00003.gguf is missing"):
        GgufModel(parts[given])


def test_parts_that_are_not_what_their_names_say(file: Path, tmp_path: Path) -> None:
    parts = split(file, tmp_path)
    renamed = parts[1].with_name("second.gguf")
    shutil.copy(parts[1], renamed)
    with pytest.raises(CheckpointError, match="part 2 of 3"):
        GgufFile(renamed)
    shutil.copy(parts[2], parts[1])
    with pytest.raises(CheckpointError, match="is not part 2 of 3"):
        GgufFile(parts[0])


def test_a_cut_part_is_refused(file: Path, tmp_path: Path) -> None:
    parts = split(file, tmp_path)
    parts[2].write_bytes(parts[2].read_bytes()[:-200])
    with pytest.raises(CheckpointError, match="00003-of-00003"):
        GgufModel(parts[0])


# -- vocabularies ---------------------------------------------------------------------------------


def pieces(**more: Any) -> dict[str, Any]:
    """A header with a SentencePiece vocabulary like Gemma's: bytes, scores by rank, user-defined runs of spaces."""
    letters = ["\u2581", *"abehnt"]
    words = ["th", "he", "\u2581t", "the", "\u2581th", "\u2581the", "\u2581a", "an", "en", "then"]
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<end_of_turn>", "  ", "\n\n"]
    tokens = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *letters, *words]
    kinds = [CONTROL, CONTROL, CONTROL, UNKNOWN, CONTROL, USER, USER, *[BYTE] * 256]
    kinds += [NORMAL] * (len(letters) + len(words))
    ranks = [-1000.0] * len(special) + [0.0] * 256 + [-100.0 - i for i in range(len(letters))]
    ranks += [-float(i) for i in range(len(words))]
    fields = {
        "model": "llama",
        "tokens": tokens,
        "token_type": np.array(kinds, np.int32),
        "scores": np.array(ranks, np.float32),
        "bos_token_id": 2,
        "eos_token_id": 1,
        "unknown_token_id": 3,
        "add_space_prefix": False,
        **more,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in fields.items() if value is not None}


def written(folder: Path, metadata: dict[str, Any]) -> Tokenizer:
    HeaderTokenizer(metadata).write(folder)
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def test_a_sentencepiece_vocabulary_is_read(tmp_path: Path) -> None:
    tokenizer = written(tmp_path, pieces())
    text = "then the  hen\n\na \u00e9 the"
    encoded = tokenizer.encode(text)
    assert encoded.tokens[0] == "<bos>"  # llama.cpp adds it to such vocabularies unless told otherwise
    assert encoded.tokens[1:5] == ["then", "\u2581the", "  ", "he"]
    assert "\n\n" in encoded.tokens
    assert "<0xC3>" in encoded.tokens
    assert tokenizer.decode(encoded.ids) == text
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert settings["bos_token"] == "<bos>"
    assert "pad_token" not in settings


def test_a_space_before_a_text_and_an_end_after_it(tmp_path: Path) -> None:
    metadata = pieces(add_space_prefix=True, add_bos_token=False, add_eos_token=True)
    tokenizer = written(tmp_path, metadata)
    encoded = tokenizer.encode("the hen")
    assert encoded.tokens[0] == "\u2581the"
    assert encoded.tokens[-1] == "<eos>"
    assert tokenizer.decode(encoded.ids) == "the hen"


def test_merges_are_made_of_scores_and_scores_of_merges(tmp_path: Path) -> None:
    from zeropoint.gguf.vocabulary import read_vocabulary

    metadata = pieces(add_bos_token=False)
    first = written(tmp_path, metadata)
    count = len(metadata["tokenizer.ggml.tokens"])
    found = read_vocabulary(tmp_path, {}, count)
    again = {
        "tokenizer.ggml.model": found.model,
        "tokenizer.ggml.tokens": list(found.tokens),
        "tokenizer.ggml.token_type": np.array([int(kind) for kind in found.types], np.int32),
        "tokenizer.ggml.scores": np.array(found.scores, np.float32),
        "tokenizer.ggml.add_space_prefix": found.space_prefix,
        "tokenizer.ggml.add_bos_token": found.starts_with_bos,
    }
    assert list(found.tokens) == metadata["tokenizer.ggml.tokens"]
    (tmp_path / "again").mkdir()
    second = written(tmp_path / "again", again)
    for text in ("then the  hen\n\n", "anthen tthhee  \u00e9", "a"):
        assert first.encode(text).ids == second.encode(text).ids


def test_two_pieces_of_one_score_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="one score"):
        merges(["a", "b", "ab", "ba"], [NORMAL] * 4, [0.0, 0.0, -1.0, -1.0])


@pytest.mark.parametrize("fault", ["scores", "token_type"])
def test_lists_that_do_not_fit_each_other_are_refused(fault: str, tmp_path: Path) -> None:
    metadata = pieces()
    metadata[f"tokenizer.ggml.{fault}"] = metadata[f"tokenizer.ggml.{fault}"][:5]
    with pytest.raises(CheckpointError, match=r"score|one integer for each token"):
        HeaderTokenizer(metadata).write(tmp_path)


# -- special tokens -------------------------------------------------------------------------------


def test_what_ends_an_answer() -> None:
    assert HeaderTokenizer(pieces()).stop_tokens() == [1, 4]  # <eos>, and <end_of_turn> by its name
    assert HeaderTokenizer(pieces(eot_token_id=7, eom_token_id=8)).stop_tokens() == [1, 7, 8, 4]
    assert HeaderTokenizer(pieces(eos_token_id=10**6)).stop_tokens() == [1, 4]  # an id beyond the tokens


def test_harmonys_end_of_a_message_does_not_end_an_answer() -> None:
    tokens = ["<|return|>", "<|call|>", "<|end|>"]
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array([CONTROL] * 3, np.int32),
    }
    assert HeaderTokenizer(metadata).stop_tokens() == [0, 1]


def test_no_token_is_made_up() -> None:
    metadata = pieces(bos_token_id=None, eos_token_id=None, padding_token_id=0)
    tokenizer = HeaderTokenizer(metadata)
    assert (tokenizer.token("bos"), tokenizer.token("eos")) == (1, 2)  # llama.cpp's for SentencePiece
    byte_level = {**metadata, "tokenizer.ggml.model": "gpt2"}
    assert HeaderTokenizer(byte_level).token("bos") is None
    assert HeaderTokenizer(byte_level).token("eos") is None


@pytest.mark.parametrize(
    ("name", "pieces_of"),
    [
        ("llama-bpe", ["It", "'s", " ", "123", "45", " caf\u00e9", "!\n"]),
        ("qwen2", ["It", "'s", " ", "1", "2", "3", "4", "5", " caf\u00e9", "!\n"]),
        ("gpt-2", ["It", "'s", " 12345", " caf\u00e9", "!", "\n"]),
        ("smollm", ["It", "'s", " ", "1", "2", "3", "4", "5", " caf\u00e9", "!", "\n"]),
        ("tekken", ["It", "'s", " ", "1", "2", "3", "4", "5", " caf\u00e9", "!\n"]),
        ("gpt-4o", ["It's", " ", "123", "45", " caf\u00e9", "!\n"]),
    ],
)
def test_how_a_name_splits_text(name: str, pieces_of: list[str]) -> None:
    from tokenizers import pre_tokenizers

    from zeropoint.gguf.vocabulary.splits import SPLITS

    made = Tokenizer.from_str(
        json.dumps(
            {
                "version": "1.0",
                "pre_tokenizer": {"type": "Sequence", "pretokenizers": SPLITS[name].steps()},
                "model": {"type": "BPE", "vocab": {}, "merges": []},
            }
        )
    )
    text = "It's 12345 caf\u00e9!\n"
    spans = [text[start:end] for _, (start, end) in made.pre_tokenizer.pre_tokenize_str(text)]
    assert spans == pieces_of
    assert isinstance(made.pre_tokenizer, pre_tokenizers.Sequence)
