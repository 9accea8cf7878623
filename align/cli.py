"""The command line: `align COMMAND …`, the same as `python -m align COMMAND …`.

Nothing heavy is imported before a command runs, so help is quick. Exit status: 0 done, 2 the
input was wrong, 1 anything else, 130 interrupted; the fault is one line on stderr, without a
traceback unless ALIGN_TRACEBACK=1 is set.
"""

import importlib.util
import logging
import os
import sys
import warnings
from collections.abc import Callable, Mapping

import align
from align.arguments import parse
from align.checks import one_of
from align.config import (
    DemoConfig,
    GenerateConfig,
    LoraFilesConfig,
    OptimizeRunConfig,
    QuickstartConfig,
    TrainConfig,
)
from align.nar import cli as nar

INPUT_ERRORS = (ValueError, TypeError, FileNotFoundError)


def quickstart(args: list[str]) -> None:
    """the main job on the embedded models in a few minutes, with a report"""
    config = parse(QuickstartConfig, args, "quickstart")
    from align.quickstart import quickstart as run

    print(run(config))


def generate(args: list[str]) -> None:
    """images from prompts, with or without LoRA"""
    config = parse(GenerateConfig, args, "generate")
    from align.commands import generate_images

    print(generate_images(config))


def train(args: list[str]) -> None:
    """AlignProp: LoRA fine-tuning by reward backpropagation"""
    config = parse(TrainConfig, args, "train")
    if config.dry_run:
        from align.training.memory import plan, plan_text
        from align.training.session import trained_reward

        print(plan_text(config, *plan(config, trained_reward(config))))
        return
    if config.self_check:
        from align.training.self_check import findings_text, self_check

        findings = self_check(config)
        print(findings_text(findings))
        if not all(finding.passed for finding in findings):
            raise RuntimeError("the self-check found a fault")
        return
    from align.processes import is_first
    from align.train import train as run
    from align.training.report import summary

    folder = run(config).out
    if is_first():  # one of several processes speaks
        print(summary(folder))


def evaluate(args: list[str]) -> None:
    """a benchmark over prompts, with a judge that was not optimized"""
    from align.evaluation.config import EvaluateConfig

    config = parse(EvaluateConfig, args, "evaluate")
    from align.evaluate import evaluate as run

    print(run(config))


def compare(args: list[str]) -> None:
    """methods side by side at equal budgets, with judged quality against compute"""
    from align.evaluation.config import CompareConfig

    config = parse(CompareConfig, args, "compare")
    from align.compare import compare as run

    print(run(config))


def optimize(args: list[str]) -> None:
    """the noise of each prompt whose picture a reward likes best"""
    config = parse(OptimizeRunConfig, args, "optimize")
    from align.noise_opt.command import explain, optimize_prompts, summary

    print(explain(config) if config.explain else summary(optimize_prompts(config)))


def demo(args: list[str]) -> None:
    """the web demo"""
    config = parse(DemoConfig, args, "demo")
    if importlib.util.find_spec("gradio") is None:
        raise ValueError("the demo needs Gradio: pip install align-diffusion[demo]")
    from align.demo.network import (  # pyright: ignore[reportMissingImports]
        own_address_without_proxy,
    )

    with own_address_without_proxy(config.host, config.share):
        from align.demo.serve import serve  # pyright: ignore[reportMissingImports]
    serve(config)


def models(args: list[str]) -> None:
    """the models that can be named, and which are installed"""
    no_arguments(args, "models")
    from align.commands import model_table

    print(model_table())


def rewards(args: list[str]) -> None:
    """the rewards and judges that can be named, and which are installed"""
    no_arguments(args, "rewards")
    from align.commands import reward_table

    print(reward_table())


def rewards_calibrate(args: list[str]) -> None:
    """how rewards agree with ratings: `align rewards calibrate DATA --reward EXPR --out TABLE`"""
    from align.config import CalibrateConfig

    config = parse(CalibrateConfig, args, "rewards calibrate")
    from align.calibrate import run

    print(run(config))


def rewards_explain(args: list[str]) -> None:
    """why a score is low: `align rewards explain "PROMPT" PICTURE...`"""
    from align.config import ExplainConfig

    config = parse(ExplainConfig, args, "rewards explain")
    from align.explain import run

    print(run(config))


def rewards_stress(args: list[str]) -> None:
    """how far a reward can be raised before a judge that is not optimized falls"""
    from align.config import StressConfig

    config = parse(StressConfig, args, "rewards stress")
    from align.stress import run

    print(run(config))


def fetch(args: list[str]) -> None:
    """download the weights of published rewards; --list, --check"""
    from align.config import FetchConfig

    config = parse(FetchConfig, args, "fetch")
    from align.fetch import run

    print(run(config))


def lora_mix(args: list[str]) -> None:
    """the weighted sum of LoRAs: `align lora mix A=0.3 B=-0.7`"""
    config = parse(LoraFilesConfig, args, "lora mix")
    from align.lora_commands import mix_loras

    print(mix_loras(config))


def lora_export(args: list[str]) -> None:
    """a LoRA in another layout, such as kohya's"""
    config = parse(LoraFilesConfig, args, "lora export")
    from align.lora_commands import export_one

    print(export_one(config))


def lora_merge(args: list[str]) -> None:
    """a full model folder with a LoRA added to its weights"""
    config = parse(LoraFilesConfig, args, "lora merge")
    from align.lora_commands import merge_into_model

    print(merge_into_model(config))


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "quickstart": quickstart,
    "train": train,
    "generate": generate,
    "optimize": optimize,
    "evaluate": evaluate,
    "compare": compare,
    "demo": demo,
    "models": models,
    "rewards": rewards,
    "rewards calibrate": rewards_calibrate,
    "rewards explain": rewards_explain,
    "rewards stress": rewards_stress,
    "fetch": fetch,
    "nar generate": nar.nar_generate,
    "nar train": nar.nar_train,
    "nar tokenizer": nar.nar_tokenizer,
    "nar align": nar.nar_align,
    "nar convert": nar.nar_convert,
    "lora mix": lora_mix,
    "lora export": lora_export,
    "lora merge": lora_merge,
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
            COMMANDS[command](arguments[words:])
            return 0
    inside = [name for name in COMMANDS if name.startswith(f"{arguments[0]} ")]
    if inside:
        raise ValueError(f"`align {arguments[0]}` needs one of: {', '.join(inside)}")
    raise ValueError(f"there is no command {arguments[0]!r}; {one_of(arguments[0], COMMANDS)}")


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
    lines = [f"  {name:<{width}}  {function.__doc__}" for name, function in COMMANDS.items()]
    commands = "\n".join(lines)
    return (
        "usage: align COMMAND [OPTIONS]\n\nAlign text-to-image models with rewards.\n\n"
        f"commands:\n{commands}\n\nalign COMMAND --help lists a command's options."
    )


def no_arguments(args: list[str], command: str) -> None:
    """Raise ValueError if a command that takes no arguments got some; answer --help."""
    if args in (["-h"], ["--help"]):
        print(f"usage: align {command}\n\n{COMMANDS[command].__doc__}")
        sys.exit(0)
    if args:
        raise ValueError(f"`align {command}` takes no arguments, got {' '.join(args)}")


def one_line(error: BaseException) -> str:
    """An error's message on one line; its class where it has none."""
    if isinstance(error, OSError) and error.strerror and error.filename is None:
        return error.strerror  # without "[Errno 28]"
    return " ".join(str(error).split()) or type(error).__name__
