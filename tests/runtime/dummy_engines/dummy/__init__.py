"""A made-up engine, which tests put beside the real ones."""
