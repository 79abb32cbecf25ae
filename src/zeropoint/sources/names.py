"""Tensor names: removal of the parts that training tools add, and matching with an architecture's names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from zeropoint.errors import CheckpointError

#: Wrapper modules of training tools: each adds a part to the names of all tensors inside the wrapped module.
WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")
#: Prefixes of all names of a wrapped model: DataParallel and DeepSpeed, PEFT.
PREFIXES = ("module.", "base_model.model.")
#: Parts of tensor names that show a PEFT adapter not merged into the weights.
UNMERGED = re.compile(r"\.(base_layer|modules_to_save|original_module)\.")

#: Masks and rotary tables, which older checkpoints store although the model's code computes them.
COMPUTED = re.compile(
    r".*(rotary_emb\.inv_freq|attn\.(masked_)?bias|attention\.(masked_)?bias|rotary_emb\.(cos|sin)_cached"
    r"|position_ids)"
)


def unwrap(stored: Iterable[str], where: object) -> tuple[Mapping[str, str], str | None]:
    """Return `(the model's own name -> the stored name, the removed parts as text or None)`.

    Removes a prefix only if every name has it. Raises `CheckpointError` if the model has an unmerged adapter, or if two
    tensors would get the same name.
    """
    own = {name: name for name in stored}
    removed: list[str] = []
    for part in WRAPPERS:
        inside = re.compile(rf"(?:(?<=^)|(?<=\.)){part}\.")
        if any(inside.search(name) for name in own):
            own = _renamed(own, {name: inside.sub("", name) for name in own}, where)
            removed.append(f"{part}.")
    for prefix in PREFIXES * 2:  # a wrapped model may be wrapped again
        if own and all(name.startswith(prefix) for name in own):
            own = _renamed(own, {name: name.removeprefix(prefix) for name in own}, where)
            removed.append(prefix)
    if unmerged := [name for name in own if UNMERGED.search(f".{name}")]:
        raise CheckpointError(
            f"{where} holds a model with an adapter that is not merged ({own[unmerged[0]]} for one): merge it with "
            "PEFT's `model.merge_and_unload()`, save that model, and give its folder"
        )
    return own, ", ".join(removed) or None


def _renamed(own: Mapping[str, str], names: Mapping[str, str], where: object) -> dict[str, str]:
    """Return `own` with its keys renamed by `names` (old -> new). Raises `CheckpointError` for equal new names."""
    renamed: dict[str, str] = {}
    for before, after in names.items():
        if after in renamed:
            raise CheckpointError(
                f"{where} holds {after} twice, as {renamed[after]} and as {own[before]}: save the model again"
            )
        renamed[after] = own[before]
    return renamed


def match(
    required: Iterable[str], stored: Iterable[str], prefix: str, aliases: Mapping[str, str]
) -> tuple[dict[str, list[str]], list[str]]:
    """Return `(required name -> the stored names that match, stored names that match nothing)`.

    As in transformers, a stored name may lack the base model's `prefix`, may have one `prefix` too many, or may be a
    key of `aliases` (stored name -> required name).
    """
    names = frozenset(required)
    matches: dict[str, list[str]] = {}
    unused: list[str] = []
    for name in sorted(stored):
        target = aliases.get(name, name)
        if prefix and target.startswith(prefix) and target.removeprefix(prefix) in names:
            target = target.removeprefix(prefix)
        elif prefix and prefix + target in names:
            target = prefix + target
        if target in names:
            matches.setdefault(target, []).append(name)
        else:
            unused.append(name)
    return matches, unused
