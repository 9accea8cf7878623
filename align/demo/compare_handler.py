"""The Compare tab, `/compare`: its values -> CompareConfig -> updates of the page."""

import tempfile
from collections.abc import Callable, Iterator
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.config.evaluate import CompareConfig
from align.demo import values
from align.demo.choices import check_lora, check_model, check_reward, nar_models
from align.demo.drive import drive
from align.demo.links import address
from align.demo.messages import one_sentence, plural, progress, status
from align.evaluation.methods import parse_methods
from align.runs.page import command_line

if TYPE_CHECKING:
    from align.demo.comparing import Compared, Entry

METHODS = {
    "base": "Base model",
    "lora": "With the LoRA",
    "bon": "Best of N",
    "carinox": "Optimized noise (CARINOX)",
    "nar": "NAR",
}
OUTPUTS = ("gallery", "table", "status", "seed", "command")
BUDGET = (1, 64)  # images


def methods() -> dict[str, str]:
    """What can be compared here; NAR needs its model."""
    return {name: text for name, text in METHODS.items() if name != "nar" or nar_models()}


def make_compare(allow_any_model: bool) -> Callable[..., Iterator[tuple]]:
    """The handler of the tab. It yields (gallery, table, status, seed, command)."""

    def compare(
        prompt: str,
        chosen: list[str],
        budget: float,
        reward: str,
        model: str,
        lora: str,
        seed: float,
        randomize_seed: bool,
        num_inference_steps: float,
        guidance_scale: float,
        run_name: str = "",
    ) -> Iterator[tuple]:
        """One prompt by several methods, each at the same budget; `stop(run_name)` ends it."""
        with one_sentence():
            prompt = values.text("prompt", prompt, needed=True)
            config = CompareConfig(
                methods=labels(
                    values.some("methods", chosen, methods()), check_lora(lora, allow_any_model)
                ),
                budget=f"{values.whole('budget', budget, *BUDGET)}images",
                reward=check_reward(reward, allow_any_model),
                model=check_model(model, allow_any_model),
                seed=values.seed(seed, randomize_seed),
                num_inference_steps=values.whole("steps", num_inference_steps, 1, 50),
                guidance_scale=values.number("guidance", guidance_scale, 1, 20),
            )
            yield from _run(config, prompt, run_name)

    return compare


def labels(chosen: list[str], lora: tuple[str, ...]) -> str:
    """The methods as `align compare --methods` takes them."""
    if "lora" in chosen and not lora:
        raise ValueError("a LoRA is to be compared but none is chosen; choose one under Settings")
    known = {"lora": f"lora={lora[0]}" if lora else "", "nar": f"nar={(nar_models() or [''])[0]}"}
    return ",".join(known.get(name, name) for name in METHODS if name in chosen)


def _run(config: CompareConfig, prompt: str, run_name: Any) -> Iterator[tuple]:
    command = command_line("compare", config) + "  # --prompts FILE: with the prompt as a line"
    yield [], "", status("Loading the models …"), config.seed, command
    from align.demo.comparing import compare_steps  # takes a while at first

    def show(newer: "Compared", former: "Compared | None") -> Iterator[dict]:
        changed: dict[str, Any] = {"status": running(newer)}
        if former is None or len(newer.entries) > len(former.entries):
            shown = gallery(newer, config, prompt, Path(folder))
            changed |= {"gallery": shown, "table": table(newer)}
        yield changed

    def end(done: "Compared", early: bool) -> Iterator[dict]:
        if done.entries:
            yield {"status": finished(done, config, prompt, early)}

    with tempfile.TemporaryDirectory(prefix="align-demo-", ignore_cleanup_errors=True) as folder:
        yield from drive(OUTPUTS, compare_steps(config, prompt), run_name, show, end)


def gallery(done: "Compared", config: CompareConfig, prompt: str, folder: Path) -> list:
    """A picture by each method so far, as PNG files that say how they were made."""
    from align.demo.pictures import slug
    from align.runs.folder import save_image

    shown = []
    for number, entry in enumerate(done.entries):
        path = folder / f"{slug(prompt)}-{number}-{short(entry.label)}.png"
        if not path.exists():
            save_image(
                path, entry.image, prompt=prompt, seed=config.seed,
                model=entry.label.removeprefix("nar=") if is_nar(entry) else config.model,
                method=entry.label, budget=config.budget, reward=config.reward,
                num_inference_steps=None if is_nar(entry) else config.num_inference_steps,
                guidance_scale=config.guidance_scale, **dict[str, Any](entry.scores),
            )  # fmt: skip
        mark = "" if entry.verdict is None else " ✓" if entry.verdict.exact else " ✗"
        shown.append((path, f"{title(entry.label)}{mark}"))
    return shown


def is_nar(entry: "Entry") -> bool:
    """Whether the picture is of a NAR model."""
    return entry.label.startswith("nar")


def short(label: str) -> str:
    """A method's plain name: `lora=runs/a` is `lora`."""
    return label.partition("=")[0]


def title(label: str) -> str:
    """A method's name for the reader."""
    return METHODS.get(short(label), label)


def table(done: "Compared") -> str:
    """Scores, what was spent, and what the verifier sees, by method."""
    if not done.entries:
        return ""
    terms = list(done.entries[0].scores)
    best = {name: max(entry.scores[name] for entry in done.entries) for name in terms}
    heads = "".join(
        f'<th scope="col">{escape(text)}</th>'
        for text in ("Method", *terms, "Images made", "Seconds", "What the verifier sees")
    )
    rows = "".join(row(entry, best) for entry in done.entries)
    return (
        f'<div class="findings wide" tabindex="0" role="region" aria-label="Scores by method">'
        f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def row(entry: "Entry", best: dict[str, float]) -> str:
    """One method's line of the table; the best score of a column is bold."""
    cells = "".join(
        f"<td>{f'<b>{value:.3f}</b>' if value == best[name] else f'{value:.3f}'}</td>"
        for name, value in entry.scores.items()
    )
    sees = "not of the embedded world"
    if entry.verdict is not None:
        mark = "good" if entry.verdict.exact else "bad"
        word = "as asked" if entry.verdict.exact else f"{entry.verdict.partial:.0%} as asked"
        sees = f'<span class="{mark}"><b>{word}</b></span>: {escape(entry.verdict.sees)}'
    spent = entry.spent
    return (
        f'<tr><th scope="row">{escape(title(entry.label))}</th>{cells}<td>{spent.images}</td>'
        f"<td>{spent.seconds:.1f}</td><td>{sees}</td></tr>"
    )


def running(done: "Compared") -> str:
    """The line while methods are at work."""
    count = len(done.entries)
    text = f"{title(done.now)}: {count + 1} of {done.total}" if done.now else "Drawing …"
    spent = sum(entry.spent.seconds for entry in done.entries)
    return progress(text, count, done.total, spent, done.warnings)


def finished(done: "Compared", config: CompareConfig, prompt: str, early: bool) -> str:
    """The line at the end."""
    methods = parse_methods(config.methods)
    names = [short(method.label) for method in methods]
    lora = [lora for method in methods if method.nar is None for lora in method.loras]
    where = address(
        "compare", prompt=prompt, methods=names, budget=config.budget.removesuffix("images"),
        reward=config.reward, model=config.model, lora=lora, seed=config.seed,
        steps=config.num_inference_steps, guidance=config.guidance_scale,
    )  # fmt: skip
    text = f"{'Stopped. ' * early}{plural(len(done.entries), 'method')} at a budget of "
    text += f"{plural(int(config.budget.removesuffix('images')), 'image')} each"
    return status(text, done.warnings, where)
