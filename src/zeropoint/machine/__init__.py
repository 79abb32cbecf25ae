"""The machine: properties of its processor and memory (`detect`), and returning freed memory to it (`heap`)."""
