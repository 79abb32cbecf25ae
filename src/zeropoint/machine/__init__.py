"""The machine: what its processor and memory are (`detect`), and giving freed memory back to it (`heap`)."""
