"""`align evaluate`: a benchmark over prompts, with a judge that was not optimized."""

from pathlib import Path
from typing import Any

from align.config.budget import Budget, parse_budget
from align.config.evaluate import CompareConfig, EvaluateConfig
from align.evaluation.page import findings, write_reports
from align.evaluation.run import do_run, make_plan
from align.runs.files import claimed


def evaluate(config: EvaluateConfig, pipe: Any = None) -> str:
    """Run the benchmark, write the reports into the run's folder, return the findings as text.

    Args:
        pipe: a pipeline that stands for `config.model`, such as one made in a test.

    Raises:
        ValueError, FileNotFoundError: what the user gave does not do; nothing was written.
    """
    budget = parse_budget(config.budget) if config.budget else None
    return run_and_report(config, "evaluate", [budget], config.num_images, pipe)


def run_and_report(
    config: EvaluateConfig | CompareConfig,
    command: str,
    budgets: list[Budget | None],
    repeats: int,
    pipe: Any,
) -> str:
    """What evaluating and comparing share; the last process to finish writes the reports."""
    plan = make_plan(config, command, budgets, repeats, pipe)
    records = do_run(plan)
    with claimed(plan.folder / "claims" / "report.lock") as mine:
        if records is None or not mine:
            return f"{plan.folder}: other processes still work on it and will write the report"
        report = write_reports(plan, records)
    return "\n".join([*findings(report, command), str(Path(plan.folder) / "report.html")])
