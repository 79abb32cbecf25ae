"""Names of tensors: what training wrappers put before and between them, and which ones no model needs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from zeropoint.errors import CheckpointError

#: Modules that training tools put around others; each adds a part to the names of all tensors inside it.
WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")
#: Prefixes of whole models: DataParallel and DeepSpeed, PEFT.
PREFIXES = ("module.", "base_model.model.")
#: Parts of names that PEFT writes for adapters that are not merged into the weights.
UNMERGED = re.compile(r"\.(base_layer|modules_to_save|original_module)\.")

#: Tables that older checkpoints store and the model's code computes: masks and rotations.
COMPUTED = re.compile(
    r".*(rotary_emb\.inv_freq|attn\.(masked_)?bias|attention\.(masked_)?bias|rotary_emb\.(cos|sin)_cached"
    r"|position_ids)"
)


def unwrap(stored: Iterable[str], where: object) -> tuple[Mapping[str, str], str | None]:
    """Return `(the model's own name -> the stored name, what was taken off or None)`.

    A prefix of a whole model is taken off where every name has it. Raise `CheckpointError` for weights around which an
    adapter still lies, and when two tensors would have one name.
    """
    own = {name: name for name in stored}
    taken: list[str] = []
    for part in WRAPPERS:
        inside = re.compile(rf"(?:(?<=^)|(?<=\.)){part}\.")
        if any(inside.search(name) for name in own):
            own = _renamed(own, {name: inside.sub("", name) for name in own}, where)
            taken.append(f"{part}.")
    for prefix in PREFIXES * 2:  # a wrapped model may be wrapped again
        if own and all(name.startswith(prefix) for name in own):
            own = _renamed(own, {name: name.removeprefix(prefix) for name in own}, where)
            taken.append(prefix)
    if unmerged := [name for name in own if UNMERGED.search(f".{name}")]:
        raise CheckpointError(
            f"{where} holds a model with an adapter that is not merged ({own[unmerged[0]]} for one): merge it with "
            "PEFT's `model.merge_and_unload()`, save that model, and give its folder"
        )
    return own, ", ".join(taken) or None


def _renamed(own: Mapping[str, str], names: Mapping[str, str], where: object) -> dict[str, str]:
    found: dict[str, str] = {}
    for before, after in names.items():
        if after in found:
            raise CheckpointError(
                f"{where} holds {after} twice, as {found[after]} and as {own[before]}: save the model again"
            )
        found[after] = own[before]
    return found


def match(
    wanted: Iterable[str], found: Iterable[str], prefix: str, aliases: Mapping[str, str]
) -> tuple[dict[str, list[str]], list[str]]:
    """Return `(wanted name -> the found names that mean it, found names that mean none)`.

    The steps are transformers': a name may lack the base model's `prefix` or have it once too often, and may be one of
    the `aliases` (stored name -> wanted name).
    """
    names = frozenset(wanted)
    meant: dict[str, list[str]] = {}
    unused: list[str] = []
    for name in sorted(found):
        target = aliases.get(name, name)
        if prefix and target.startswith(prefix) and target.removeprefix(prefix) in names:
            target = target.removeprefix(prefix)
        elif prefix and prefix + target in names:
            target = prefix + target
        if target in names:
            meant.setdefault(target, []).append(name)
        else:
            unused.append(name)
    return meant, unused
