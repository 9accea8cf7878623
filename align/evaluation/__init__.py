"""The parts of `align evaluate` and `align compare`: methods, budgets, judges, statistics."""
