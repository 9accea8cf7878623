"""The Align tab: `/train` begins a training, `/training` shows it, `/stop_training` saves it.

The state is on the disk, not in the page: whoever opens or reloads it sees the same training.
"""

import shutil
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from align.config.presets import PRESETS
from align.config.train import TrainConfig
from align.demo import training, values
from align.demo.choices import check_model, check_reward
from align.demo.links import address
from align.demo.messages import one_sentence, plural, progress, status
from align.runs.page import command_line
from align.training.report import judge_name

if TYPE_CHECKING:
    from align.demo.training import View

PRESET = "taste"  # what shows soonest on the models inside
STYLE = PRESETS[PRESET]
MINUTES = (0.1, 30.0)
UPDATES = (1, 1000)
SMOOTH = 8  # updates that a point of the reward's curve is the mean of
OWN = "own"  # prompts that the visitor writes
SETS = {
    "scenes": "Coloured shapes, all kinds of prompts",
    "scenes-2d_spatial": "Coloured shapes, left and right, above and below",
    "scenes-numeracy": "Coloured shapes, numbers of them",
    "animals": "45 animals (of AlignProp and DDPO)",
    OWN: "My own, one a line",
}
OWN_PROMPTS = 200  # lines
OWNER_LENGTH = 100
NOTHING = (
    "<p>No training yet. Choose a reward and press <b>Train</b>: a LoRA, a small addition to the "
    "model, is trained to draw pictures that the reward likes.</p>"
)


def make_train(allow_any_model: bool) -> Callable[..., tuple]:
    """The handler of Train. It returns what `show` returns, and the command line."""

    def train(
        reward: str,
        prompt_set: str,
        own_prompts: str,
        minutes: float,
        updates: float,
        learning_rate: float,
        model: str,
        seed: float,
        owner: str = "",
    ) -> tuple:
        """Train a LoRA in the background; `/training` says how far it is."""
        with one_sentence():
            model = check_model(model, allow_any_model)
            chosen = values.one("prompts", prompt_set, SETS)
            prompts = lines(own_prompts) if chosen == OWN else []
            config = TrainConfig(
                preset=PRESET if model.startswith("embedded/") else None,
                model=model,
                reward=check_reward(reward, allow_any_model),
                prompts=None if chosen == OWN else chosen,
                steps=values.whole("updates", updates, *UPDATES),
                max_minutes=values.number("minutes", minutes, *MINUTES),
                learning_rate=values.number("learning rate", learning_rate, 1e-6, 1e-2),
                seed=values.seed(seed, False),
                sample_every=10,
                checkpoint_every=0,
                tracker="none",
                **judging(model),
            )
            training.start(config, prompts, own(owner))
            return (*show(None), command_line("train", config))

    return train


def judging(model: str) -> dict[str, Any]:
    """The judge, where there is one that nobody trains on."""
    if not model.startswith("embedded/"):
        return {}
    return {"judge": "verifier-partial", "judge_images": 16, "judge_every": 10}


def lines(text: Any) -> list[str]:
    """A visitor's own prompts. Raises ValueError for none or too many."""
    if not isinstance(text, str) or not text.strip():
        raise ValueError("there is no prompt; write at least one, one a line")
    if len(text) > OWN_PROMPTS * 200:
        raise ValueError(f"the prompts have {len(text)} characters; at most {OWN_PROMPTS * 200}")
    found = [line.strip() for line in text.replace("\r", "\n").split("\n") if line.strip()]
    if len(found) > OWN_PROMPTS:
        raise ValueError(f"there are {len(found)} prompts; at most {OWN_PROMPTS} are allowed")
    return [values.text("prompt", line, needed=True) for line in found]


def own(owner: Any) -> str:
    """The browser's key; without one nobody can stop the training before its time."""
    if not isinstance(owner, str) or len(owner) > OWNER_LENGTH:
        raise TypeError(f"the owner is {values.short(owner)}; it must be a short text")
    return owner


def stop(owner: Any = "") -> tuple:
    """Save and end the training that this browser has started."""
    with one_sentence():
        training.stop(own(owner))
        return show(None)


def show(shown: Any = None) -> tuple:
    """How far the newest training is, and what it has reached.

    Returns (status, reward's curve, judge's curve, before, latest, what the reader sees in both,
    LoRA's file, what was shown). `shown` is the last value of the former call: where nothing is
    new everything is skipped.
    """
    view = training.newest()
    mark = fingerprint(view)
    skip = gr.skip()
    if mark == shown:
        return (skip,) * 8
    if view is None:
        return f'<div class="status">{NOTHING}</div>', "", "", None, None, "", no_file(), mark
    rewards, judged = curves(view.records)
    file = skip if mark[-1] == (shown or [None])[-1] else lora_file(view)
    before, latest = pictures(view)
    seen = readings(before, latest) if view.config.get("model", "").startswith("embedded/") else ""
    return line(view), rewards, judged, before, latest, seen, file, mark


def pictures(view: "View") -> tuple[Path | None, Path | None]:
    """The pictures before and now; none of a model with a safety checker: they did not pass it."""
    if view.before is None:
        return None, None
    from align.demo.safety import ships  # takes a while at first

    return (None, None) if ships(view.config["model"]) else (view.before, view.latest)


def fingerprint(view: "View | None") -> list:
    """What changes when something new is to be shown; JSON, as it goes through the browser."""
    if view is None:
        return ["none"]
    drawn = [str(path) for path in (view.before, view.latest)]
    saved = view.lora.stat().st_mtime if view.lora and not view.running else None
    left = round(view.seconds_left / 5)
    return [view.folder.name, len(view.records), view.running, *drawn, left, view.fault, saved]


def no_file() -> Any:
    """The download button while there is nothing to download."""
    return gr.update(value=None, interactive=False)


def lora_file(view: "View") -> Any:
    """The LoRA for the download button, named after its run; only of a training that is done."""
    if view.lora is None or view.running:
        return no_file()
    named = training.beside(view.folder, ".safetensors")
    shutil.copyfile(view.lora, named)
    return gr.update(value=named, interactive=True)


def readings(before: Path | None, latest: Path | None) -> str:
    """HTML: what the verifier's reader sees in the pictures before and in the newest ones."""
    if before is None or latest is None:
        return ""
    from align.demo.pictures import measured  # takes a while at first

    sides = [measured(path, path.stat().st_mtime_ns) for path in (before, latest)]
    prompts, *columns = sides[0][0], *(rows for _, rows, _ in sides)
    rows = "".join(
        f"<tr><td>{escape(prompt)}</td>" + "".join(f"<td>{escape(t)}</td>" for t in texts) + "</tr>"
        for prompt, *texts in zip(prompts, *columns, strict=True)
    )
    ends = "".join(f"<td>{escape(means)}</td>" for _, _, means in sides)
    return (
        '<div class="scroll"><table><thead><tr><th>What a reader sees, row by row</th>'
        f"<th>Before</th><th>Newest</th></tr></thead><tbody>{rows}"
        f"<tr><td>mean of all eight</td>{ends}</tr></tbody></table></div>"
    )


def curves(records: list[dict[str, Any]]) -> tuple[str, str]:
    """Pictures of curves: the reward by update, as a moving mean with its band, on an axis as wide
    as single pictures differ; and the judge by update."""
    from align.demo.curves import curves as drawn

    rows = [(record["step"], "reward", record["reward"]) for record in records]
    spread = [record.get("reward_std") or 0.0 for record in records]
    judged = [(r["step"], "judge", r["judge"]) for r in records if r.get("judge") is not None]
    apart = sum(spread) / max(len(spread), 1)
    return (
        drawn(rows, "update", "reward of the update", smooth=SMOOTH, height=2 * apart),
        drawn(judged, "update", "judge", height=0.5) if len(judged) > 1 else "",
    )


def line(view: "View") -> str:
    """How far the training is and what it has reached."""
    config, records = view.config, view.records
    what = view.folder.name
    what += f": {config['reward']} on {config['model']}" if config else ""
    warnings = [r["warning"] for r in records if r.get("warning")][-1:]
    if view.running:
        total = config.get("steps") or 1
        if not records:
            return status(f"{what}. Loading the model and drawing the pictures before …")
        spent = sum(record["seconds"] or 0 for record in records)
        guess = spent / len(records) * (total - len(records))
        left = min(guess, view.seconds_left) if view.seconds_left else guess
        text = f"{what}. Update {len(records)} of {total}"
        done = spent / max(spent + left, 1e-9)
        return progress(text, done, 1.0, spent, warnings)
    if view.fault:
        return status(f"{what}. It failed: {view.fault}")
    text = f"{what}. Done after {plural(len(records), 'update')}"
    text += "".join(f"; {gain}" for gain in gains(view.report))
    return status(text, warnings, link(config))


def gains(report: dict[str, Any]) -> list[str]:
    """What a finished training has reached: reward of the fixed pictures, and the judge."""
    pictures, judge = report.get("pictures", {}), report.get("judge")
    before, after = pictures.get("before", {}), pictures.get("after", {})
    found = [f"{n} {before[n]:.3f} → {after[n]:.3f}" for n in before if n in after]
    if judge:
        found.append(f"{judge_name(judge)} {judge['before']:.3f} → {judge['after']:.3f}")
    return [escape(text) for text in found]


def link(config: dict[str, Any]) -> str:
    """The address of the tab with a run's settings."""
    prompts = config.get("prompts")
    return address(
        "align", reward=config.get("reward"), prompts=prompts if prompts in SETS else None,
        minutes=config.get("max_minutes"), updates=config.get("steps"),
        rate=config.get("learning_rate"), model=config.get("model"), seed=config.get("seed"),
    )  # fmt: skip
