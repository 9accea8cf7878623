"""`align train`."""

from align.alignprop.memory import plan, plan_text
from align.alignprop.self_check import findings_text, self_check
from align.alignprop.session import trained_reward
from align.alignprop.train import train
from align.config.train import TrainConfig
from align.training.report import summary_by_one


def run(config: TrainConfig) -> str | None:
    """Train, or say what it would take or whether it is sound; returns what to print.

    Raises RuntimeError where the self-check found a fault.
    """
    if config.dry_run:
        return plan_text(config, *plan(config, trained_reward(config)))
    if config.self_check:
        findings = self_check(config)
        print(findings_text(findings))
        if not all(finding.passed for finding in findings):
            raise RuntimeError("the self-check found a fault")
        return None
    return summary_by_one(train(config).out)
