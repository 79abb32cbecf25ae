"""Train a prepared model with transformers' Trainer (which needs `accelerate`), and write the artifact.

python examples/train/hugging_face_trainer.py build/reference-model notes.txt smollm2-int4
"""

import sys
from pathlib import Path

from transformers import AutoTokenizer, Trainer, TrainingArguments

import zeropoint


def main(source: str, text: str, out: str, length: int = 256) -> None:
    tokens = AutoTokenizer.from_pretrained(source)(Path(text).read_text(), return_tensors="pt").input_ids[0]
    windows = tokens[: len(tokens) // length * length].view(-1, length)
    data = [{"input_ids": window, "labels": window} for window in windows]
    model = zeropoint.prepare_qat(source, "int4")
    arguments = TrainingArguments(
        output_dir=f"{out}.trainer",
        per_device_train_batch_size=2,
        max_steps=100,
        learning_rate=1e-5,
        weight_decay=0.0,
        lr_scheduler_type="cosine",
        save_strategy="no",
        report_to=[],
    )
    Trainer(model=model, args=arguments, train_dataset=data).train()
    zeropoint.convert_qat(model.cpu(), out)


if __name__ == "__main__":
    main(*sys.argv[1:4])
