"""Fit a model to a text of its own and to 4 bits in one run: any torch loop works, here fifteen lines of it.

    python examples/train/domain.py build/reference-model notes.txt smollm2-int4

The loss is that of predicting the text (not of a teacher), through the 4-bit weights. The artifact has exactly the
codes that the loop trained with. `zeropoint train` is the same with a teacher, a schedule, early stop and a measured
result.
"""

import sys
from pathlib import Path

import torch
from transformers import AutoTokenizer

import zeropoint


def main(source: str, text: str, out: str, steps: int = 100, length: int = 256) -> None:
    tokens = AutoTokenizer.from_pretrained(source)(Path(text).read_text(), return_tensors="pt").input_ids[0]
    windows = tokens[: len(tokens) // length * length].view(-1, length)
    model = zeropoint.prepare_qat(source, "int4")
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=1e-5, weight_decay=0.0
    )
    for step in range(steps):
        window = windows[step % len(windows)][None].to(model.device)
        loss = model(input_ids=window, labels=window).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        print(f"step {step + 1}: loss {loss.item():.3f}")
    zeropoint.convert_qat(model.cpu(), out)


if __name__ == "__main__":
    main(*sys.argv[1:4])
