"""Tasks of lm-evaluation-harness: their files (`task_files.py`), a runner as an lm-eval model (`lm_eval_model.py`), and
the accuracy of two models on the same items (`accuracy.py`)."""

from zeropoint.evaluate.tasks.task_files import answer, load, task_files

__all__ = ["answer", "load", "task_files"]
