"""The NAR tab, `/nar`: its values -> NarGenerateConfig -> updates of the page.

A model for clips gives GIFs; while they are drawn, their frames side by side.
"""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from align.config.nar import NarGenerateConfig
from align.demo import uploads, values
from align.demo.choices import (
    NO_LORA,
    check_lora,
    check_model,
    loras,
    nar_clip_models,
    nar_defaults,
    nar_models,
)
from align.demo.drive import drive
from align.demo.handlers import OUTPUTS, findings, gallery_of
from align.demo.links import address
from align.demo.messages import one_sentence, plural, progress, status
from align.runs.page import command_line

if TYPE_CHECKING:
    from align.demo.drawing import Corner, Drawn

IMAGES = (1, 8)


def make_nar(allow_any_model: bool) -> Callable[..., Iterator[tuple]]:
    """The handler of the tab. It yields (gallery, seed, status, findings, command)."""

    def nar(
        prompt: str,
        model: str,
        lora: str,
        seed: float,
        randomize_seed: bool,
        guidance_scale: float,
        temperature: float,
        top_k: float,
        top_p: float,
        num_images: float,
        compare: bool,
        picture: str = "",
        share: float = 0.5,
        run_name: str = "",
    ) -> Iterator[tuple]:
        """Pictures, or clips by a model for them, by neighboring-autoregressive decoding; of a
        `picture` (a data: address) the upper left corner is kept, `share` of each side.
        `stop(run_name)` ends it."""
        with one_sentence():
            config = NarGenerateConfig(
                prompt=(values.text("prompt", prompt, needed=True),),
                model=check_model(model, allow_any_model, [*nar_models(), *nar_clip_models()]),
                lora=check_lora(lora, allow_any_model),
                seed=values.seed(seed, randomize_seed),
                guidance_scale=values.number("guidance", guidance_scale, 1, 20),
                temperature=values.number("temperature", temperature, 0, 5),
                top_k=values.whole("top-k", top_k, 0, 100_000),
                top_p=values.number("top-p", top_p, 0.01, 1),
                num_images=values.whole("images", num_images, *IMAGES),
            )
            share = values.number("share", share, 0.1, 0.9)
            given, compare = uploads.picture(picture), values.flag("compare", compare)
            yield from _run(config, given, share, compare, run_name)

    return nar


def _run(
    config: NarGenerateConfig, given: Any, share: float, compare: bool, run_name: Any
) -> Iterator[tuple]:
    command = command_line("nar generate", config)
    command += "  # without the given corner" if given else ""
    yield [], config.seed, status("Loading the model …"), "", command
    from align.demo.drawing import Corner, wavefront_steps  # takes a while at first

    corner = Corner(given, share) if given else None

    def show(newer: "Drawn", former: "Drawn | None") -> Iterator[dict]:
        fresh = newer.images is not None and (former is None or newer.images is not former.images)
        if newer.ended and fresh:
            yield from _pictures(newer, config, corner)
        previews = {"gallery": _previews(newer)} if fresh and not newer.ended else {}
        yield {"status": running(newer, config)} | previews

    def end(done: "Drawn", early: bool) -> Iterator[dict]:
        if done.ended:
            yield {"status": finished(done, config)}

    yield from drive(OUTPUTS, wavefront_steps(config, corner, compare), run_name, show, end)


def _previews(drawn: "Drawn") -> list:
    from align.nar.video_pipeline import filmstrip
    from align.runs.folder import to_pil

    assert drawn.images is not None
    images = drawn.images if drawn.images.ndim == 4 else filmstrip(drawn.images)
    return [to_pil(image) for image in images]


def _pictures(drawn: "Drawn", config: NarGenerateConfig, corner: "Corner | None") -> Iterator[dict]:
    from align.demo.pictures import judge, judge_clips, save_pictures

    assert drawn.images is not None
    judged = judge if drawn.images.ndim == 4 else judge_clips
    verdicts = judged(config.model, config.prompt[0], drawn.images)
    said = {"model": config.model, "lora": config.lora, **drawn.settings}
    said |= {"corner_kept": corner.share} if corner else {}
    with tempfile.TemporaryDirectory(prefix="align-demo-") as folder:  # the page gets copies
        paths = save_pictures(drawn.images, config, said, Path(folder))
        yield {"gallery": gallery_of(paths, verdicts), "findings": findings(verdicts, config)}


def running(drawn: "Drawn", config: NarGenerateConfig) -> str:
    """The line while tokens are decoded: pass, time left."""
    if drawn.ended:
        return status(f"{speed(drawn, config)}. Measuring raster order beside it …")
    if not drawn.done:
        return status("Reading the prompt …")
    text = f"Wavefront {drawn.done} of {drawn.total}"
    return progress(text, drawn.done, drawn.total, drawn.seconds)


def speed(drawn: "Drawn", config: NarGenerateConfig) -> str:
    """How fast the pictures were."""
    clips = drawn.images is not None and drawn.images.ndim == 5
    made = plural(config.num_images, "clip" if clips else "picture")
    return f"{made} in {drawn.total} passes and {drawn.seconds:.2f} s"


def finished(drawn: "Drawn", config: NarGenerateConfig) -> str:
    """The line at the end, with the baseline's time where it was measured."""
    text = speed(drawn, config)
    if drawn.baseline is not None:
        passes, seconds = drawn.baseline
        text += (
            f"; token by token, in raster order, a model of the same size takes {passes} passes "
            f"and {seconds:.2f} s here: NAR is {seconds / max(drawn.seconds, 1e-9):.1f} times as "
            "fast"
        )
    where = address(
        "nar", prompt=config.prompt[0], model=config.model, lora=config.lora, seed=config.seed,
        guidance=config.guidance_scale, temperature=config.temperature, top_k=config.top_k,
        top_p=config.top_p, images=config.num_images,
    )  # fmt: skip
    return status(text, (), where)


def model_defaults(model: Any) -> tuple[dict, dict, dict]:
    """Guidance and temperature that suit the chosen model, and the LoRAs of it."""
    guidance, temperature = nar_defaults(str(model))
    choices = gr.update(choices=loras(str(model)), value=NO_LORA)
    return gr.update(value=guidance), gr.update(value=temperature), choices


def lora_settings(model: Any, lora: Any, allow_any_model: bool) -> tuple[dict, ...]:
    """Guidance, temperature, top-k and top-p that the chosen LoRA was trained for.

    Without a LoRA, or where it does not say, they are the model's own.
    """
    guidance, temperature = nar_defaults(str(model))
    own = {"guidance_scale": guidance, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    with one_sentence():
        if chosen := check_lora(lora, allow_any_model):
            from align.nar.pipeline import trained_policy

            policy = trained_policy(chosen)
            own = {name: policy.get(name, value) for name, value in own.items()}
    return tuple(gr.update(value=value) for value in own.values())
