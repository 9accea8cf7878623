"""The Optimize noise tab, `/optimize`: its values -> OptimizeRunConfig -> updates of the page."""

import tempfile
from collections.abc import Callable, Iterator
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from align.config.optimize import SEARCHES, OptimizeRunConfig
from align.demo import values
from align.demo.choices import check_lora, check_model, check_reward
from align.demo.drive import drive, update
from align.demo.handlers import likely
from align.demo.links import address
from align.demo.messages import one_sentence, plural, progress, status
from align.runs.page import command_line

if TYPE_CHECKING:
    from align.demo.search import Found

OUTPUTS = (
    "best", "initial", "gallery", "curves", "status", "explanation", "noise", "seed", "command",
    "facts",
)  # fmt: skip
WEIGHTS = ("category", "uniform")
BUDGET = (1, 200)  # images
STEPS = (1, 50)
BATCH = 4  # small, so that the first frame comes soon


def make_optimize(allow_any_model: bool) -> Callable[..., Iterator[tuple]]:
    """The handler of the tab. It yields (best, initial, gallery, curves, status, explanation,
    noise file, seed, command, facts)."""

    def optimize(
        prompt: str,
        reward: str,
        weights: str,
        method: str,
        budget: float,
        model: str,
        lora: str,
        seed: float,
        randomize_seed: bool,
        num_inference_steps: float,
        guidance_scale: float,
        run_name: str = "",
    ) -> Iterator[tuple]:
        """The best noise for a prompt; `stop(run_name)` ends it and keeps the best."""
        with one_sentence():
            config = OptimizeRunConfig(
                prompt=(values.text("prompt", prompt, needed=True),),
                reward=check_reward(reward, allow_any_model),
                weights=values.one("weights", weights, WEIGHTS),
                method=values.one("method", method, SEARCHES),
                budget=f"{values.whole('budget', budget, *BUDGET)}images",
                model=check_model(model, allow_any_model),
                lora=check_lora(lora, allow_any_model),
                seed=values.seed(seed, randomize_seed),
                num_inference_steps=values.whole("steps", num_inference_steps, *STEPS),
                guidance_scale=values.number("guidance", guidance_scale, 0, 20),
                batch_size=BATCH,
            )
            yield from _run(config, run_name)

    return optimize


def _run(config: OptimizeRunConfig, run_name: Any) -> Iterator[tuple]:
    yield update(
        OUTPUTS, best=None, initial=None, gallery=[], curves="", explanation="", facts="",
        status=status("Loading the model and the rewards …"), seed=config.seed,
        command=command_line("optimize", config),
    )  # fmt: skip
    from align.demo.search import search_steps  # takes a while at first

    def show(newer: "Found", former: "Found | None") -> Iterator[dict]:
        yield news(newer, former, config) | {"status": running(newer, config)}

    def end(found: "Found", early: bool) -> Iterator[dict]:
        if found.step is not None:
            yield news(found, None, config) | {"status": finished(found, config, early)}

    with tempfile.TemporaryDirectory(prefix="align-demo-", ignore_cleanup_errors=True) as folder:
        yield from drive(OUTPUTS, search_steps(config, Path(folder)), run_name, show, end)


def news(found: "Found", shown: "Found | None", config: OptimizeRunConfig) -> dict[str, Any]:
    """The outputs of which the page does not show yet what was found."""
    changed: dict[str, Any] = {}
    if shown is None:
        changed["explanation"] = explanation(found, config)
    if shown is None or found.initial != shown.initial:
        changed["initial"] = found.initial
    if found.step and found.rows != (shown.rows if shown else ()):
        changed["curves"] = curves(found)
    if shown is None or found.best != shown.best:
        changed |= {"best": found.best, "gallery": list(found.path), "facts": facts_table(found)}
        if found.noise:
            changed["noise"] = gr.update(value=found.noise, interactive=True)
    return changed


def facts_table(found: "Found") -> str:
    """How probably each stated fact holds in the first picture and in the best, as a table."""
    if len(found.facts) < 2:
        return ""
    rows = "".join(
        f"<tr><th scope='row'>{escape(fact.text)}</th><td>{likely(fact)}</td>"
        f"<td>{likely(best)}{f' <small>{escape(best.note)}</small>' if best.note else ''}</td></tr>"
        for fact, best in zip(*found.facts, strict=True)
    )
    return (
        '<div class="findings"><table><thead><tr><th scope="col">Fact, by scenes-detector</th>'
        '<th scope="col">First</th><th scope="col">Best so far</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def curves(found: "Found") -> str:
    """The gains so far as a picture of curves, one a reward."""
    from align.demo.curves import curves as drawn

    return drawn(found.rows, "images made", "gain over the first picture")


def running(found: "Found", config: OptimizeRunConfig) -> str:
    """The line while the search goes on: what it does, images made, time left."""
    step = found.step
    if step is None:
        return status("Drawing the first pictures …", found.warnings)
    total = int((config.budget or "").removesuffix("images"))
    done = min(step.generator_forwards, total)
    text = f"{step.phase.capitalize()}: {done} of {total} images, best {step.best_total:.3f}"
    return progress(text, done, total, step.seconds, found.warnings)


def finished(found: "Found", config: OptimizeRunConfig, early: bool) -> str:
    """The line at the end."""
    assert found.step is not None
    step = found.step
    text = (
        f"{'Stopped. ' * early}Weighted score {found.first['']:.3f} → {step.best_total:.3f} in "
        f"{plural(step.generator_forwards, 'image')} and {step.seconds:.1f} s"
    )
    where = address(
        "optimize", prompt=config.prompt[0], reward=config.reward, weights=config.weights,
        method=config.method, budget=(config.budget or "").removesuffix("images"),
        model=config.model, lora=config.lora, seed=config.seed,
        steps=config.num_inference_steps, guidance=config.guidance_scale,
    )  # fmt: skip
    notes = [note.rstrip(".") for note in step.notes]
    return status(text, [*found.warnings, *notes], where)


def explanation(found: "Found", config: OptimizeRunConfig) -> str:
    """The prompt's category and what each reward counts, in words."""
    lines = "".join(f"<p>{escape(line.capitalize())}.</p>" for line in found.weighing.sentences)
    rows = "".join(
        f"<tr><th scope='row'>{escape(part.name)}</th><td>{part.weight:.3f}</td>"
        f"<td>{'yes' if part.differentiable else 'no, it screens and selects'}</td></tr>"
        for part in found.weighing.objective.parts
    )
    return (
        f'<div class="findings">{lines}<table><thead><tr><th scope="col">Reward</th>'
        f'<th scope="col">Weight</th><th scope="col">Gradient</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def method_choices() -> list[tuple[str, str]]:
    """(what it does, name) of every method, for the page."""
    return [(method.does, name) for name, method in SEARCHES.items()]
