"""The check that every token of a tokenizer has an embedding."""

from __future__ import annotations

from pathlib import Path


def tokens_beyond(folder: Path, rows: int) -> str | None:
    """Return a note on the tokens of a folder's tokenizer.json whose ids are `rows` or more; None if there are none.

    Returns None for a tokenizer that cannot be read: the command that needs the tokenizer reports the error.
    """
    from tokenizers import Tokenizer

    file = folder / "tokenizer.json"
    if not file.is_file():
        return None
    try:
        ids = Tokenizer.from_file(str(file)).get_vocab(with_added_tokens=True)
    except Exception:  # the library raises the bare Exception
        return None
    beyond = sorted((number, token) for token, number in ids.items() if number >= rows)
    if not beyond:
        return None
    number, token = beyond[0]
    return (
        f"the tokenizer has {len(beyond)} tokens beyond the {rows} rows of the embedding, {token[:40]!r} (id {number}) "
        "for one: a text that holds one cannot be read; resize the model's embedding, or take the tokenizer that the "
        "model was trained with"
    )
