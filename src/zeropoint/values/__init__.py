"""Plain values that every layer shares: schemes, quantized tensors, plans, budgets, reports. Each is checked when it is
built."""
