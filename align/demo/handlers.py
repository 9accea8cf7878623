"""What the page does: its values -> the command line's config -> work -> updates of the page.

Nothing that a browser sends is trusted: every value is checked here, whatever the page allows.
Heavy imports are inside the functions, so that the page is there before the models are.
"""

import logging
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from align.config.commands import GenerateConfig
from align.demo import values
from align.demo.choices import (
    NO_LORA,
    check_lora,
    check_model,
    defaults,
    expressions,
    loras,
    models,
    nar_models,
)
from align.demo.drive import drive, update
from align.demo.links import address
from align.demo.messages import one_sentence, plural, progress, status
from align.runs.page import command_line

if TYPE_CHECKING:
    from align.demo.pictures import Update, Verdict
    from align.rewards.facts import Fact

log = logging.getLogger(__name__)
OUTPUTS = ("gallery", "seed", "status", "findings", "command")


def model_defaults(model: Any) -> tuple[int, float, Any]:
    """Steps, guidance and LoRA choices when this model is picked."""
    return *defaults(str(model)), gr.update(choices=loras(str(model)), value=NO_LORA)


def lora_choices(model: Any, lora: Any) -> Any:
    """The LoRAs that there are now, as the page is loaded or the list opened."""
    choices = loras(str(model))
    known = [value for _, value in choices]
    return gr.update(choices=choices, value=lora if lora in known else NO_LORA)


def make_generate(allow_any_model: bool) -> Callable[..., Iterator[tuple]]:
    """The handler of the Generate tab, `/generate`.

    It yields (gallery, seed, status, findings, command): previews first, then the pictures.
    """

    def generate(
        prompt: str,
        negative_prompt: str,
        model: str,
        lora: str,
        seed: float,
        randomize_seed: bool,
        num_inference_steps: float,
        guidance_scale: float,
        num_images: float,
        width: float | None,
        height: float | None,
        run_name: str = "",
    ) -> Iterator[tuple]:
        """Pictures of a prompt; `stop(run_name)` ends it."""
        with one_sentence():
            config = GenerateConfig(
                prompt=(values.text("prompt", prompt, needed=True),),
                negative_prompt=values.text("negative prompt", negative_prompt) or None,
                model=check_model(model, allow_any_model),
                lora=check_lora(lora, allow_any_model),
                seed=values.seed(seed, randomize_seed),
                num_inference_steps=values.whole("steps", num_inference_steps, 1, 100),
                guidance_scale=values.number("guidance", guidance_scale, 0, 20),
                num_images=values.whole("images", num_images, 1, 8),
                width=None if width in (None, 0) else values.whole("width", width, 8, 4096),
                height=None if height in (None, 0) else values.whole("height", height, 8, 4096),
            )
            yield from _run(config, run_name)

    return generate


def _run(config: GenerateConfig, run_name: Any) -> Iterator[tuple]:
    loading, command = status("Loading the model …"), command_line("generate", config)
    yield update(OUTPUTS, seed=config.seed, status=loading, findings="", command=command)
    from align.demo.pictures import generate_steps, judge, save_pictures  # takes a while at first

    def show(newer: "Update", former: "Update | None") -> Iterator[dict]:
        if newer.settings:  # the last, which `end` shows
            return
        fresh = newer.images is not None and (former is None or newer.images is not former.images)
        yield {"status": running(newer)} | ({"gallery": _previews(newer)} if fresh else {})

    def end(done: "Update", early: bool) -> Iterator[dict]:
        if early or done.images is None:
            return
        verdicts = judge(config.model, config.prompt[0], done.images)
        with tempfile.TemporaryDirectory(prefix="align-demo-") as folder:  # the page gets copies
            paths = save_pictures(done.images, config, done.settings, Path(folder))
            text = f"{plural(len(paths), 'picture')} in {done.seconds:.1f} s"
            yield {
                "gallery": gallery_of(paths, verdicts),
                "seed": config.seed,
                "status": status(text, done.warnings, link(config)),
                "findings": findings(verdicts, config),
                "command": command,
            }

    yield from drive(OUTPUTS, generate_steps(config), run_name, show, end)


def _previews(update: "Update") -> list:
    from align.runs.folder import to_pil

    assert update.images is not None
    return [to_pil(image) for image in update.images]


def _caption(index: int, verdict: "Verdict | None") -> str:
    mark = "" if verdict is None else " ✓" if verdict.exact else " ✗"
    return f"{index + 1}{mark}"


def gallery_of(paths: list[Path], verdicts: "list[Verdict]") -> list[tuple[Path, str]]:
    """Pictures for a gallery, numbered and marked by what the verifier says."""
    found = verdicts or [None] * len(paths)
    return [(path, _caption(i, found[i])) for i, path in enumerate(paths)]


def link(config: GenerateConfig) -> str:
    """The address of the tab with these settings."""
    return address(
        "generate", prompt=config.prompt[0], negative=config.negative_prompt, model=config.model,
        lora=config.lora, seed=config.seed, steps=config.num_inference_steps,
        guidance=config.guidance_scale, images=config.num_images, width=config.width,
        height=config.height,
    )  # fmt: skip


def running(update: "Update") -> str:
    """The line under the gallery while pictures are made: step, time left."""
    if not update.done:
        return status("Loading the model …")
    text = f"Step {update.done} of {update.total}"
    return progress(text, update.done, update.total, update.seconds, update.warnings)


def findings(verdicts: "list[Verdict]", config: Any) -> str:
    """What the verifier sees in each picture, as a list."""
    if not verdicts:
        return ""
    right = sum(verdict.exact for verdict in verdicts)
    rows = "".join(
        f'<li class="{"good" if v.exact else "bad"}"><b>{_caption(i, v)}</b> {escape(v.sees)} '
        f"<small>({v.partial:.0%} of what is asked for, seed {config.seed + i})</small>"
        f"{facts_list(v.facts)}</li>"
        for i, v in enumerate(verdicts)
    )
    return (
        '<div class="findings"><p><b>What the verifier sees</b>, a program that reads the pictures '
        f"back and takes no part in making them: {right} of {len(verdicts)} exactly as asked.</p>"
        f"<ul>{rows}</ul></div>"
    )


def facts_list(facts: "Sequence[Fact]") -> str:
    """The facts of a picture, to be opened; nothing where there are none."""
    if not facts:
        return ""
    rows = "".join(f"<li>{fact_text(fact)}</li>" for fact in facts)
    return f"<details><summary>Fact by fact, by scenes-detector</summary><ul>{rows}</ul></details>"


def fact_text(fact: "Fact") -> str:
    """`✗ 12% the red circle is striped`, and what is there instead."""
    note = f" ({fact.note})" if fact.note else ""
    return f"{likely(fact)} {escape(fact.text + note)}"


def likely(fact: "Fact") -> str:
    """`✓ 98%`: how probably a fact holds."""
    return f"{'✓' if fact.probability >= 0.5 else '✗'} {fact.probability:.0%}"


def warm_up() -> threading.Thread:
    """Import what is heavy and load what is asked for first, in the background."""

    def load() -> None:
        try:
            from align.demo.pictures import SLOT, pipeline, reward_of

            with SLOT:
                pipeline(models()[0], ())
            if nar_models():
                from align.demo.drawing import nar_pipeline

                with SLOT:
                    nar_pipeline(nar_models()[0])
            with SLOT:
                reward_of(expressions()[0])
        except Exception:
            log.exception("the first model could not be loaded")

    thread = threading.Thread(target=load if models() else None, name="align-demo-warm-up")
    thread.daemon = True
    thread.start()
    return thread
