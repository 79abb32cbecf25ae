"""Plain values that every layer shares: schemes, quantized tensors, plans, budgets, statistics, sensitivity tables and
reports."""
