"""Count the instructions of a kernel's inner loops per multiply-accumulate, from the disassembly of an object file.

    python scripts/loop_instructions.py OBJECT [PATTERN] [--objdump aarch64-linux-gnu-objdump]

For each innermost loop (from the target of a backward branch to the branch) of the functions whose names match PATTERN
that multiplies bytes, it prints the instructions, the multiply-accumulates, and their ratio. ARM64 only. Used for
docs/arm.md.
"""

from __future__ import annotations

import argparse
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

#: Multiply-accumulates of an instruction. SMULL and SMLAL multiply eight bytes, their second forms the other eight.
MULTIPLIES = {"sdot": 16, "smmla": 32, "smull": 8, "smull2": 8, "smlal": 8, "smlal2": 8}


def functions(listing: str) -> Iterator[tuple[str, list[tuple[int, str]]]]:
    """Yield (name, [(address, instruction)]) of each function of objdump's listing."""
    for part in re.split(r"\n(?=[0-9a-f]{16} <)", listing):
        head, _, body = part.partition("\n")
        lines = re.findall(r"^ *([0-9a-f]+):\t(?:[0-9a-f]{8} \t)?(.*)$", body, re.MULTILINE)
        if match := re.match(r"[0-9a-f]{16} <(.*)>:", head):
            yield match[1], [(int(address, 16), text) for address, text in lines]


def loops(code: list[tuple[int, str]]) -> Iterator[list[str]]:
    """Yield the instructions of each innermost loop."""
    places = {address: at for at, (address, _) in enumerate(code)}
    spans = []
    for at, (address, text) in enumerate(code):
        match = re.match(r"(?:b\.\w+|b|cbn?z|tbn?z)\t(?:.*, )?([0-9a-f]+) <", text)
        if match and (start := int(match[1], 16)) <= address and start in places:
            spans.append((places[start], at))
    for start, end in spans:
        if not any((a, b) != (start, end) and start <= a and b <= end for a, b in spans):
            yield [text for _, text in code[start : end + 1]]


def main() -> None:
    """Print a line for each loop."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("object", type=Path)
    parser.add_argument("pattern", nargs="?", default="")
    parser.add_argument("--objdump", default="aarch64-linux-gnu-objdump")
    parser.add_argument("--listing", action="store_true", help="print the instructions, too")
    args = parser.parse_args()
    command = [args.objdump, "-d", "-C", "--no-show-raw-insn", str(args.object)]
    listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    for name, code in functions(listing):
        if not re.search(args.pattern, name):
            continue
        for body in loops(code):
            words = [text.split("\t")[0] for text in body]
            multiplies = sum(MULTIPLIES.get(word, 0) for word in words)
            if multiplies:
                stores = sum(word in {"str", "stp", "stur"} for word in words)
                print(
                    f"{len(body):5d} instructions {multiplies:5d} MAC {len(body) / multiplies:.4f} a MAC, "
                    f"{stores} stores  {name}"
                )
                if args.listing:
                    print("\n".join(f"        {text}" for text in body))


if __name__ == "__main__":
    main()
