"""The files under scripts/accelerate, read by accelerate's own classes and launcher."""

import os
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import ClusterConfig
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DeepSpeedPlugin
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

from align.config.train import TrainConfig

FOLDER = Path(__file__).parent.parent / "scripts" / "accelerate"
FILES = sorted(path.name for path in FOLDER.glob("*.yaml"))


@pytest.fixture
def launch(monkeypatch):
    """The arguments that `accelerate launch --config_file FILE -m align train` ends up with."""
    monkeypatch.chdir(FOLDER.parent.parent)  # the DeepSpeed file is named from there

    def arguments(name):
        words = ["--config_file", str(FOLDER / name), "-m", "align", "train"]
        return _validate_launch_command(launch_command_parser().parse_args(words))[0]

    return arguments


@pytest.mark.parametrize("name", FILES)
def test_accelerate_reads_every_file(name):
    config = ClusterConfig.from_yaml_file(str(FOLDER / name))  # ValueError for unknown keys
    assert config.num_processes == 2
    assert config.compute_environment.value == "LOCAL_MACHINE"


@pytest.mark.parametrize("name", ["ddp.yaml", "fsdp.yaml"])
def test_processes_are_started_and_nothing_else(name, launch):
    args = launch(name)
    assert args.multi_gpu
    assert not args.use_fsdp  # --shard is ours
    assert args.mixed_precision == "no"
    environment = prepare_multi_gpu_env(args)
    assert environment["ACCELERATE_MIXED_PRECISION"] == "no"
    assert "ACCELERATE_USE_FSDP" not in environment


def test_deepspeed_gets_its_file_and_leaves_accumulation_to_us(launch, monkeypatch):
    args = launch("deepspeed.yaml")
    assert args.use_deepspeed
    fields = ClusterConfig.from_yaml_file(str(FOLDER / "deepspeed.yaml")).deepspeed_config
    args.deepspeed_fields_from_accelerate_config = ",".join(fields)  # as `launch_command` does
    _, environment = prepare_deepspeed_cmd_env(args)
    assert environment["ACCELERATE_MIXED_PRECISION"] == "no"
    assert "ACCELERATE_GRADIENT_ACCUMULATION_STEPS" not in environment
    for key in environment.keys() - os.environ.keys():
        monkeypatch.setenv(key, environment[key])
    plugin = DeepSpeedPlugin()
    plugin.set_mixed_precision(args.mixed_precision)
    config = plugin.deepspeed_config
    assert plugin.zero_stage == 2
    # "auto" takes the accelerator's own count, which `align train` sets before it prepares
    assert plugin.is_auto("gradient_accumulation_steps")
    assert config["gradient_clipping"] == TrainConfig().max_grad_norm
    # neither of them, or DeepSpeed would cast the LoRA as well
    assert not config["fp16"]["enabled"]
    assert not config["bf16"]["enabled"]
    # without a data loader it must be a number; the loss is that of our own micro-batch
    assert isinstance(config["train_micro_batch_size_per_gpu"], int)
