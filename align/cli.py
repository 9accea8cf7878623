"""The command line: `align COMMAND …`, the same as `python -m align COMMAND …`.

Nothing heavy is imported before a command runs, so help is quick. Exit status: 0 done, 2 the
input was wrong, 1 anything else, 130 interrupted; the fault is one line on stderr, without a
traceback unless ALIGN_TRACEBACK=1 is set.
"""

import logging
import os
import sys
import warnings
from collections.abc import Mapping
from pkgutil import resolve_name

import align
from align.arguments import parse
from align.config.checks import INPUT_ERRORS, one_line, one_of

# What each command's settings are, who does it (a function of them that returns what to print), and
# what `align --help` says. Nothing is imported before its command runs.
COMMANDS: dict[str, tuple[str | None, str, str]] = {
    "quickstart": (
        "align.config.commands:QuickstartConfig",
        "align.commands.quickstart:quickstart",
        "the main job on the embedded models in a few minutes, with a report",
    ),
    "train": (
        "align.config.train:TrainConfig",
        "align.commands.train:run",
        "LoRA fine-tuning by a reward, its gradient or its ranking, or on rated pictures",
    ),
    "generate": (
        "align.config.commands:GenerateConfig",
        "align.commands.generate:generate_images",
        "images from prompts, with or without LoRA",
    ),
    "optimize": (
        "align.config.optimize:OptimizeRunConfig",
        "align.commands.optimize:run",
        "the noise of each prompt whose picture a reward likes best",
    ),
    "evaluate": (
        "align.config.evaluate:EvaluateConfig",
        "align.commands.evaluate:evaluate",
        "a benchmark over prompts, with a judge that was not optimized",
    ),
    "compare": (
        "align.config.evaluate:CompareConfig",
        "align.commands.compare:compare",
        "methods side by side at equal budgets, with judged quality against compute",
    ),
    "demo": ("align.config.commands:DemoConfig", "align.demo.start:demo", "the web demo"),
    "models": (
        None,
        "align.commands.generate:model_table",
        "the models that can be named, and which are installed",
    ),
    "rewards": (
        None,
        "align.commands.generate:reward_table",
        "the rewards and judges that can be named, and which are installed",
    ),
    "rewards calibrate": (
        "align.config.commands:CalibrateConfig",
        "align.commands.calibrate:run",
        "how rewards agree with ratings: `align rewards calibrate DATA --reward EXPR --out TABLE`",
    ),
    "rewards explain": (
        "align.config.commands:ExplainConfig",
        "align.commands.explain:run",
        'why a score is low: `align rewards explain "PROMPT" PICTURE...`',
    ),
    "rewards stress": (
        "align.config.commands:StressConfig",
        "align.evaluation.stress:run",
        "how far a reward can be raised before a judge that is not optimized falls",
    ),
    "fetch": (
        "align.config.commands:FetchConfig",
        "align.commands.fetch:run",
        "download the weights of published rewards; --list, --check",
    ),
    "nar generate": (
        "align.config.nar:NarGenerateConfig",
        "align.commands.nar:generate_nar",
        "pictures by neighboring-autoregressive decoding",
    ),
    "nar train": (
        "align.config.nar:NarTrainConfig",
        "align.nar.training.train:train_nar",
        "a neighboring-autoregressive model of one's own pictures",
    ),
    "nar tokenizer": (
        "align.config.nar:NarTokenizerConfig",
        "align.nar.training.tokenizer:train_tokenizer",
        "an image tokenizer of one's own pictures",
    ),
    "nar align": (
        "align.config.nar:NarAlignConfig",
        "align.commands.nar:train_lora",
        "raise a reward on a NAR model: GRPO or DPO with a LoRA",
    ),
    "nar convert": (
        "align.config.nar:NarConvertConfig",
        "align.nar.training.convert:convert_nar",
        "a raster autoregressive model made into NAR",
    ),
    "lora mix": (
        "align.config.commands:LoraFilesConfig",
        "align.commands.lora:mix_loras",
        "the weighted sum of LoRAs: `align lora mix A=0.3 B=-0.7`",
    ),
    "lora export": (
        "align.config.commands:LoraFilesConfig",
        "align.commands.lora:export_one",
        "a LoRA in another layout, such as kohya's",
    ),
    "lora merge": (
        "align.config.commands:LoraFilesConfig",
        "align.commands.lora:merge_into_model",
        "a full model folder with a LoRA added to its weights",
    ),
}
SMALL = (
    "quickstart",
    "train",
    "generate",
    "optimize",
    "evaluate",
    "compare",
    "demo",
    "nar generate",
)


def command_line() -> None:
    """The process's own command line, and the end of the process."""
    leave(main())


def leave(status: int) -> None:
    """End the process. One of several skips what the interpreter does at its end: torch's threads
    can wait there for ever for an interpreter that no longer answers (pytorch issue 190489)."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        sys.exit(status)
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    os._exit(status)


def main(arguments: list[str] | None = None) -> int:
    """Run a command line (default: that of the process); returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        return _dispatch(arguments)
    except KeyboardInterrupt:
        print("align: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output, such as `head`, has gone
        sys.stdout = None
        return 1
    except Exception as error:
        if os.environ.get("ALIGN_TRACEBACK"):
            raise
        print(f"align: {one_line(error)}", file=sys.stderr)
        return 2 if isinstance(error, INPUT_ERRORS) else 1


def _dispatch(arguments: list[str]) -> int:
    if not arguments:
        print(usage(), file=sys.stderr)
        return 2
    if arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if arguments[0] == "--version":
        print(f"align {align.__version__}")
        return 0
    for words in (2, 1):  # `lora mix` before a plain `lora`
        command = " ".join(arguments[:words])
        if command in COMMANDS and len(arguments) >= words:
            _quiet_libraries()
            if one_thread(command, arguments[words:], os.environ):
                os.environ["OMP_NUM_THREADS"] = "1"  # PyTorch reads it as it is imported
            _carry_out(command, arguments[words:])
            return 0
    inside = [name for name in COMMANDS if name.startswith(f"{arguments[0]} ")]
    if inside:
        raise ValueError(f"`align {arguments[0]}` needs one of: {', '.join(inside)}")
    raise ValueError(f"there is no command {arguments[0]!r}; {one_of(arguments[0], COMMANDS)}")


def _carry_out(command: str, arguments: list[str]) -> None:
    """Read a command's settings, do it and print what it returns."""
    settings, work, _ = COMMANDS[command]
    if settings is None:
        no_arguments(arguments, command)
        said = resolve_name(work)()
    else:
        config = parse(resolve_name(settings), arguments, command)
        said = resolve_name(work)(config)
    if said is not None:
        print(said)


def one_thread(command: str, arguments: list[str], environment: Mapping[str, str]) -> bool:
    """Whether a command runs the small models inside, on which a second thread gains little, and
    loses everything once another process wants a core. What the user has set stays."""
    if command not in SMALL or "OMP_NUM_THREADS" in environment:
        return False
    words = " ".join(arguments).replace("--model=", "--model ").split()
    named = [words[i + 1] for i, word in enumerate(words[:-1]) if word == "--model"]
    others = {"--config", "--resume", "--allow-any-model"}
    return all(name.startswith("embedded/") for name in named) and not others & set(words)


def _quiet_libraries() -> None:
    """Our own messages, plain; of the libraries' only what went wrong, and download bars."""
    logging.basicConfig(level=logging.ERROR, format="%(message)s", stream=sys.stderr)
    logging.getLogger("align").setLevel(logging.INFO)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it retries, aloud
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    warnings.simplefilter("ignore", FutureWarning)
    warnings.simplefilter("ignore", DeprecationWarning)


def usage() -> str:
    """The text of `align --help`."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, (_, _, text) in COMMANDS.items()]
    commands = "\n".join(lines)
    return (
        "usage: align COMMAND [OPTIONS]\n\nAlign text-to-image models with rewards.\n\n"
        f"commands:\n{commands}\n\nalign COMMAND --help lists a command's options."
    )


def no_arguments(args: list[str], command: str) -> None:
    """Raise ValueError if a command that takes no arguments got some; answer --help."""
    if args in (["-h"], ["--help"]):
        print(f"usage: align {command}\n\n{COMMANDS[command][2]}")
        sys.exit(0)
    if args:
        raise ValueError(f"`align {command}` takes no arguments, got {' '.join(args)}")
