"""`align compare`: methods side by side at equal budgets, on the same prompts and seeds."""

from typing import Any

from align.commands.evaluate import run_and_report
from align.config.evaluate import CompareConfig
from align.evaluation.spending import parse_budgets


def compare(config: CompareConfig, pipe: Any = None) -> str:
    """Run the comparison, write the reports into the run's folder, return the findings as text.

    Args:
        pipe: a pipeline that stands for `config.model`, such as one made in a test.

    Raises:
        ValueError, FileNotFoundError: what the user gave does not do; nothing was written.
        RuntimeError: a budget in seconds on a busy machine.
    """
    budgets = parse_budgets(config.budget)
    return run_and_report(config, "compare", [*budgets], config.repeats, pipe)
