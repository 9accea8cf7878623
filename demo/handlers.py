"""What the page does: its values -> the command line's config -> work -> updates of the page.

Nothing that a browser sends is trusted: every value is checked here, whatever the page allows.
Heavy imports are inside the functions, so that the page is there before the models are.
"""

import json
import logging
import math
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

import align
from align.checks import one_of
from align.cli import INPUT_ERRORS, one_line
from align.config import GenerateConfig
from align.demo import values
from align.report import command_line

if TYPE_CHECKING:
    from align.demo.pictures import Update, Verdict

log = logging.getLogger(__name__)
EMBEDDED = Path(align.__file__).parent / "embedded"
RUNS = Path("runs")
NO_LORA = ""
LORAS_LISTED = 50
NAME_LENGTH = 64  # of a run, as the browser names it
TO_STOP: deque[str] = deque(maxlen=256)  # names of the runs that visitors stopped last
DEFAULTS = {"embedded": (25, 3.0), "turbo": (1, 1.0), "other": (30, 7.5)}  # steps, guidance


def models() -> list[str]:
    """The text-to-image pipelines that ship with the package, those of many steps first."""
    names = []
    for index in EMBEDDED.glob("*/model_index.json"):
        kind = json.loads(index.read_text(encoding="utf-8"))["_class_name"]
        if kind.startswith("StableDiffusion"):
            names.append(f"embedded/{index.parent.name}")
    return sorted(names, key=lambda name: ("turbo" in name, name))


def loras(model: str | None = None) -> list[tuple[str, str]]:
    """(label, value) of the LoRAs in the runs folder, newest first, after the choice of none.

    With a model only those that were trained on it.
    """
    found = []
    for pattern in ("*/lora/*.safetensors", "*/*/lora/*.safetensors"):
        for file in RUNS.glob(pattern):
            run = file.parents[1]
            config = _run_config(run)
            if model is None or config.get("model") in (None, model):
                reward = f" ({config['reward']})" if "reward" in config else ""
                label = f"{run.relative_to(RUNS)}{reward}"
                found.append((file.stat().st_mtime, label, str(run)))
    found = sorted(found, reverse=True)[:LORAS_LISTED]
    return [("none", NO_LORA), *((label, value) for _, label, value in found)]


def _run_config(run: Path) -> dict[str, Any]:
    try:
        config = json.loads((run / "run.json").read_text(encoding="utf-8"))["config"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return config if isinstance(config, dict) else {}


def model_defaults(model: Any) -> tuple[int, float, Any]:
    """Steps, guidance and LoRA choices when this model is picked."""
    name = str(model).lower()
    kind = "turbo" if "turbo" in name else "embedded" if name.startswith("embedded/") else "other"
    return *DEFAULTS[kind], gr.update(choices=loras(str(model)), value=NO_LORA)


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
        with _one_sentence():
            config = GenerateConfig(
                prompt=(values.text("prompt", prompt, needed=True),),
                negative_prompt=values.text("negative prompt", negative_prompt) or None,
                model=_model(model, allow_any_model),
                lora=_lora(lora, allow_any_model),
                seed=values.seed(seed, randomize_seed),
                num_inference_steps=values.whole("steps", num_inference_steps, 1, 100),
                guidance_scale=values.number("guidance", guidance_scale, 0, 20),
                num_images=values.whole("images", num_images, 1, 8),
                width=None if width in (None, 0) else values.whole("width", width, 8, 4096),
                height=None if height in (None, 0) else values.whole("height", height, 8, 4096),
            )
            yield from _run(config, run_name)

    return generate


def stop(run_name: Any) -> None:
    """End the run of that name within one step, or as it begins where it still waits."""
    if isinstance(run_name, str) and run_name:
        TO_STOP.append(run_name[:NAME_LENGTH])


def _run(config: GenerateConfig, run_name: Any) -> Iterator[tuple]:
    unchanged, command = gr.skip(), command_line("generate", config)
    yield unchanged, config.seed, status("Loading the model …"), "", command
    from align.demo.pictures import generate_steps, judge, save_pictures  # takes a while at first

    update, shown = None, None
    with closing(generate_steps(config)) as updates:
        for newer in updates:
            update = newer or update
            if run_name in TO_STOP:
                yield unchanged, unchanged, status("Stopped."), unchanged, unchanged
                return
            if newer is None or update is None:
                yield (unchanged,) * 5
            elif update.settings:
                break
            else:
                fresh = update.images is not None and update.images is not shown
                shown = update.images
                previews = _previews(update) if fresh else unchanged
                yield previews, unchanged, running(update), unchanged, unchanged
    if update is None or update.images is None:
        raise RuntimeError("the generation ended without pictures")
    verdicts = judge(config.model, config.prompt[0], update.images)
    with tempfile.TemporaryDirectory(prefix="align-demo-") as folder:  # the page gets copies
        paths = save_pictures(update.images, config, update.settings, Path(folder))
        gallery = [
            (path, _caption(i, verdicts[i] if verdicts else None)) for i, path in enumerate(paths)
        ]
        seconds = f"{len(paths)} picture{'s' * (len(paths) > 1)} in {update.seconds:.1f} s"
        yield gallery, config.seed, status(seconds, update), findings(verdicts, config), command


def _previews(update: "Update") -> list:
    from align.run import to_pil

    assert update.images is not None
    return [to_pil(image) for image in update.images]


def _caption(index: int, verdict: "Verdict | None") -> str:
    mark = "" if verdict is None else " ✓" if verdict.exact else " ✗"
    return f"{index + 1}{mark}"


def status(text: str, update: "Update | None" = None) -> str:
    """The line under the gallery, with what the model will not read of the prompt."""
    warnings = update.warnings if update else []
    notes = "".join(f'<p class="warning">⚠ {escape(warning)}.</p>' for warning in warnings)
    return f'<div class="status" role="status"><p>{escape(text)}</p>{notes}</div>'


def running(update: "Update") -> str:
    """The line under the gallery while pictures are made: step, time left."""
    if not update.done:
        return status("Loading the model …")
    left = update.seconds / update.done * (update.total - update.done)
    text = f"Step {update.done} of {update.total} · {math.ceil(left)} s left"
    bar = f'<progress max="{update.total}" value="{update.done}" aria-label="progress"></progress>'
    return status(text, update).replace("</p>", f"</p>{bar}", 1)


def findings(verdicts: "list[Verdict]", config: GenerateConfig) -> str:
    """What the verifier sees in each picture, as a list."""
    if not verdicts:
        return ""
    right = sum(verdict.exact for verdict in verdicts)
    rows = "".join(
        f'<li class="{"good" if v.exact else "bad"}"><b>{_caption(i, v)}</b> {escape(v.sees)} '
        f"<small>({v.partial:.0%} of what is asked for, seed {config.seed + i})</small></li>"
        for i, v in enumerate(verdicts)
    )
    return (
        '<div class="findings"><p><b>What the verifier sees</b>, a program that reads the pictures '
        f"back and takes no part in making them: {right} of {len(verdicts)} exactly as asked.</p>"
        f"<ul>{rows}</ul></div>"
    )


def warm_up() -> None:
    """Import what is heavy and load the first model, in the background."""

    def load() -> None:
        try:
            from align.demo.pictures import SLOT, pipeline

            with SLOT:
                pipeline(models()[0], ())
        except Exception:
            log.exception("the first model could not be loaded")

    if models():
        threading.Thread(target=load, name="align-demo-warm-up", daemon=True).start()


@contextmanager
def _one_sentence() -> Iterator[None]:
    """Show what goes wrong as one sentence in the page, never as a traceback."""
    try:
        yield
    except INPUT_ERRORS as error:
        raise gr.Error(_sentence(error), print_exception=False) from error
    except MemoryError as error:
        text = "The memory was not enough; ask for fewer or smaller pictures."
        raise gr.Error(text, print_exception=False) from error
    except Exception as error:
        log.exception("a visitor's request failed")
        if "out of memory" in str(error):
            text = "The memory was not enough; ask for fewer or smaller pictures."
        else:
            text = "Something went wrong on the server; its log says what."
        raise gr.Error(text, print_exception=False) from error


def _sentence(error: BaseException) -> str:
    text = escape(one_line(error), quote=False)
    return f"{text[:1].upper()}{text[1:]}" + ("" if text.endswith((".", "?", "!")) else ".")


def _model(value: Any, allow_any: bool) -> str:
    name = values.text("model", value, needed=False)
    if not name:
        raise ValueError("no model is chosen; choose one under Settings")
    if not allow_any and name not in models():
        raise ValueError(f"the model is {values.short(name)}; {one_of(name, models())}")
    return name


def _lora(value: Any, allow_any: bool) -> tuple[str, ...]:
    name = values.text("LoRA", value)
    known = [value for _, value in loras()]
    if not allow_any and name not in known:
        listed = ", ".join(known[1:]) or "none yet"
        raise ValueError(f"the LoRA is {values.short(name)}; those in {RUNS}/ are: {listed}")
    return (name,) if name else ()
