"""Configs: ranges, choices, JSON round trips, options that several commands share."""

import ast
import dataclasses
import inspect
import itertools
import json
import re
import typing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from align.arguments import parse
from align.config import commands as config
from align.config import evaluate as evaluation_config
from align.config import groups
from align.config import nar as nar_config
from align.config import optimize as optimize_config
from align.config import train as train_config
from align.config.checks import REMOVED, choices, from_dict, to_dict
from align.config.commands import GenerateConfig, LoraFilesConfig
from align.config.nar import NarAlignConfig, NarTrainConfig
from align.config.optimize import OptimizeConfig, OptimizeRunConfig
from align.config.presets import PRESETS
from align.config.train import METHODS, TrainConfig

KINDS = [GenerateConfig, LoraFilesConfig, OptimizeConfig, OptimizeRunConfig, TrainConfig]
COUNTS = st.integers(1, 10_000)
# Fields whose values depend on each other, or that have a range narrower than their type.
NARROW = {
    "eta": st.floats(0, 1),
    "explore_share": st.floats(0, 1),
    "budget": st.none() | st.sampled_from(["30s", "200nfe", "64images"]),
    "ema_decay": st.none() | st.floats(0, 1),
    "micro_batch_size": st.none(),
    "group_size": st.integers(2, 64),
    "pairs": st.none(),
    "out": st.none() | st.text(),
    "resume": st.none(),
    "preset": st.none() | st.sampled_from(sorted(PRESETS)),
    "old_decay": st.floats(0, 1),
    "stop_on": st.none() | st.just("grid:0.01"),
    "grad_window": st.sampled_from(["all", "1", "random", "random:1-1", "draft-lv:3", "refl"]),
    "lora_targets": st.lists(st.text(), min_size=1).map(tuple),
}


def values_of(name, hint, allowed):
    """A strategy of valid values of a field."""
    if name in NARROW:
        return NARROW[name]
    if allowed:
        return st.sampled_from([value for value in allowed if value != "sft"])  # it needs pairs
    if hint in (int, int | None):
        return COUNTS
    if hint in (float, float | None):
        return st.floats(1e-6, 1e6)
    if hint is bool:
        return st.booleans()
    return st.lists(st.text()).map(tuple) if hint == tuple[str, ...] else st.text()


def configs(kind):
    hints = typing.get_type_hints(kind)
    marked = typing.get_type_hints(kind, include_extras=True)
    values = st.fixed_dictionaries(
        {n: values_of(n, hint, choices(marked[n])) for n, hint in hints.items()}
    )
    return values.map(lambda found: kind(**whole_groups(found)))


def whole_groups(values):
    """A method that compares images needs a batch of whole groups; others keep theirs."""
    method = METHODS.get(values.get("method"))  # None where a search, or nothing, has the name
    if method is None or not method.compares:
        return values
    whole = {"batch_size": values["batch_size"] * values["group_size"]}
    if method is METHODS["grpo"]:  # the only one without eta, and with few windows
        whole |= {"eta": 0.0, "grad_window": "sparse:1"}
        whole["num_inference_steps"] = values["num_inference_steps"] + 1
    return values | whole


@pytest.mark.usefixtures("unchecked")  # which draw numbers of their own
@pytest.mark.parametrize("kind", KINDS)
def test_json_round_trip(kind):
    @given(configs(kind))
    def check(config):
        assert from_dict(kind, json.loads(json.dumps(to_dict(config)))) == config

    check()


@pytest.mark.parametrize("kind", KINDS)
def test_defaults_are_valid_and_frozen(kind):
    config = kind()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 1


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (TrainConfig, {"steps": 0}, "steps is 0; it must be at least 1"),
        (TrainConfig, {"num_inference_steps": -3}, "num_inference_steps is -3"),
        (TrainConfig, {"learning_rate": 0.0}, "learning_rate is 0.0; it must be more than 0"),
        (TrainConfig, {"learning_rate": float("nan")}, "learning_rate is nan"),
        (TrainConfig, {"kl_weight": float("inf")}, "kl_weight is inf; it must be 0 or more"),
        (TrainConfig, {"eta": 1.5}, "eta is 1.5; it must be from 0 to 1"),
        (TrainConfig, {"batch_size": 8, "micro_batch_size": 3}, "must divide batch_size"),
        (TrainConfig, {"optimizer": "adam"}, "did you mean adamw"),
        (TrainConfig, {"lora_targets": ()}, "lora_targets is empty"),
        (TrainConfig, {"out": "a", "resume": "b"}, "give one of them"),
        (TrainConfig, {"overwrite": True, "resume": "b"}, "exclude each other"),
        (GenerateConfig, {"num_images": 0}, "num_images is 0"),
        (GenerateConfig, {"height": -8}, "height is -8"),
        (GenerateConfig, {"attention": "flash"}, "attention is 'flash'"),
        (OptimizeConfig, {"method": "carinx"}, "did you mean carinox"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_out_of_range(kind, values, message):
    with pytest.raises(ValueError, match=message):
        kind(**values)


def test_resume_implies_out():
    assert TrainConfig(resume="runs/a").out == "runs/a"
    assert TrainConfig(resume="runs/a", out="runs/a").out == "runs/a"


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"stps": 3}, ValueError, "no field 'stps'; did you mean steps"),
        ({"steps": "many"}, TypeError, "steps is 'many'"),
        ({"steps": True}, TypeError, "steps is True"),
        ({"lora": [1]}, TypeError, "lora is"),
        ({"steps": None}, TypeError, "steps is None"),
    ],
)
def test_foreign_values(values, error, message):
    with pytest.raises(error, match=message):
        from_dict(TrainConfig, values)


@pytest.mark.parametrize("kind", [NarAlignConfig, OptimizeConfig, OptimizeRunConfig])
def test_saved_runs_may_name_removed_settings_at_their_former_defaults(kind):
    former = REMOVED[kind.__name__]
    assert not former.keys() & to_dict(kind()).keys()
    saved = to_dict(kind(seed=3)) | former
    assert from_dict(kind, saved) == kind(seed=3)
    for name in former:
        with pytest.raises(ValueError, match=f"{name} is 'x', but that setting was removed"):
            from_dict(kind, saved | {name: "x"})


def test_given_values_win_over_a_preset_even_where_they_are_the_default():
    config = TrainConfig(preset="alignprop", steps=TrainConfig().steps)
    assert config.steps == TrainConfig().steps
    assert (config.weight_decay, config.grad_window) == (0.1, "random")
    assert dataclasses.replace(config, steps=3).weight_decay == 0.1
    assert dataclasses.replace(config, weight_decay=1e-4).weight_decay == 1e-4
    with pytest.raises(ValueError, match="did you mean alignprop"):
        TrainConfig(preset="aligprop")


def test_another_preset_replaces_what_the_former_one_filled_in_and_nothing_else():
    embedded = TrainConfig(preset="embedded", batch_size=4)
    assert dataclasses.replace(embedded, preset="trl") == TrainConfig(preset="trl", batch_size=4)
    plain = TrainConfig(preset="embedded")
    assert dataclasses.replace(plain, preset="trl", steps=7) == TrainConfig(preset="trl", steps=7)
    assert dataclasses.replace(plain, preset="trl").batch_size == 1
    assert dataclasses.replace(plain, preset=None) == TrainConfig()
    twice = dataclasses.replace(dataclasses.replace(plain, seed=3), preset="trl")
    assert twice == TrainConfig(preset="trl", seed=3)


def test_given_values_win_over_the_preset_of_a_nar_model():
    given = {"width": 128, "batch_size": 16}  # the defaults
    config = NarTrainConfig(preset="paper", **given)
    assert (config.width, config.batch_size, config.num_layers) == (128, 16, 12)
    assert dataclasses.replace(NarTrainConfig(preset="paper"), preset=None) == NarTrainConfig()
    arguments = ["--preset", "paper", "--width", "128", "--batch-size", "16"]
    assert to_dict(parse(NarTrainConfig, arguments, "nar train")) == to_dict(config)
    assert from_dict(NarTrainConfig, to_dict(config)) == config


FIELDS = (
    "steps",
    "batch_size",
    "micro_batch_size",
    "learning_rate",
    "weight_decay",
    "max_grad_norm",
    "lora_rank",
    "num_inference_steps",
    "guidance_scale",
    "eta",
    "grad_window",
    "ema_decay",
)
PUBLISHED = {
    "alignprop": (14, 128, 4, 1e-3, 0.1, 500, 4, 50, 7.5, 0, "random", None),
    "alignprop-aesthetic": (14, 128, 4, 1e-3, 0.1, 500, 4, 50, 7.5, 0, "random", None),
    "alignprop-k1": (14, 128, 4, 1e-3, 0.1, 500, 4, 50, 7.5, 0, "1", None),
    "alignprop-hps": (400, 128, 4, 1e-3, 0.1, 500, 4, 50, 7.5, 0, "random", None),
    "trl": (100, 1, None, 1e-3, 1e-4, 1, 4, 50, 5, 1, "random", None),
    "draft-1": (2000, 4, None, 4e-4, 0.1, 1, 8, 50, 7.5, 0, "1", None),
    "draft-lv": (2000, 4, None, 4e-4, 0.1, 1, 8, 50, 7.5, 0, "draft-lv:2", None),
    "refl": (100, 64, 2, 1e-5, 1e-2, 1000, 4, 40, 1, 1, "refl", 0.9999),
    "drtune": (300, 64, 8, 1e-5, 1e-4, 1, 4, 25, 3.5, 0, "drtune:3", 0.995),
    "draft-plus": (2000, 4, 1, 1e-4, 0, 10, 32, 50, 7.5, 0, "1", 0.9999),
    "nft": (1000, 1152, 24, 3e-4, 1e-4, 1, 32, 10, 1, 0, "all", None),
    "elbo-rl": (360, 1152, 24, 3e-4, 1e-4, 5, 32, 10, 1, 0, "all", None),
    "v-grpo": (580, 1152, 24, 3e-4, 1e-4, 0, 32, 40, 1, 0, "all", None),
    "flow-grpo": (1000, 1152, 24, 3e-4, 1e-4, 1, 32, 10, 4.5, 0, "all", None),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_have_the_published_values(name):
    config = TrainConfig(preset=name)
    assert tuple(getattr(config, field) for field in FIELDS) == PUBLISHED[name]


def test_presets_set_what_is_theirs_alone():
    assert TrainConfig(preset="alignprop-aesthetic").reward == "aesthetic"
    assert TrainConfig(preset="alignprop-hps").reward == "hps:2.0"
    assert TrainConfig(preset="drtune").detach_uncond
    plus = TrainConfig(preset="draft-plus")
    assert (plus.kl_weight, plus.warmup_steps, plus.lr_schedule) == (1.0, 10, "constant")
    embedded = TrainConfig(preset="embedded")
    assert (embedded.steps, embedded.batch_size, embedded.learning_rate) == (130, 8, 5e-4)
    dpo = TrainConfig(preset="embedded-dpo")
    assert (dpo.method, dpo.steps, dpo.group_size, dpo.lora_rank) == ("dpo", 300, 8, 32)
    assert (dpo.lora_targets, dpo.kl_weight) == (("up_blocks.*.attentions.*",), 30.0)
    nft, elbo, v_grpo = (TrainConfig(preset=name) for name in ("nft", "elbo-rl", "v-grpo"))
    assert (nft.group_size, nft.pair_timesteps, nft.lora_alpha, nft.kl_weight) == (24, 9, 64, 1e-4)
    assert (nft.nft_beta, nft.old_decay, nft.advantage) == (1.0, 0.5, "running")
    assert (elbo.advantage, elbo.old_decay) == ("mean", 0.5)
    assert (v_grpo.pair_timesteps, v_grpo.kl_weight, v_grpo.old_decay) == (4, 0.0, 0.0)
    own = {"embedded", "embedded-dpo", "embedded-turbo", "taste"}
    assert PUBLISHED.keys() | own == PRESETS.keys()


def test_integers_serve_as_floats():
    assert from_dict(TrainConfig, {"guidance_scale": 3}).guidance_scale == 3


def written_options(module):
    """(class, option with its default and help) of each option in a module's text."""
    for kind in ast.parse(inspect.getsource(module)).body:
        body = kind.body if isinstance(kind, ast.ClassDef) else []
        for field, after in itertools.pairwise(body):
            if isinstance(field, ast.AnnAssign) and field.value and isinstance(after, ast.Expr):
                yield kind.name, tuple(map(ast.unparse, (field.target, field.value, after)))


def test_each_option_is_written_once():
    """No class says again, word by word, what another says of an option and its default."""
    written = {}
    for module in (groups, config, train_config, optimize_config, evaluation_config, nar_config):
        for kind, option in written_options(module):
            written.setdefault(option, []).append(kind)
    assert len(written) > 200
    assert {option: kinds for option, kinds in written.items() if len(kinds) > 1} == {}


def test_help_lists_first_what_a_user_sets_most_and_the_folder_last(capsys):
    with pytest.raises(SystemExit):
        parse(TrainConfig, ["--help"], "train")
    said = capsys.readouterr().out
    options = re.findall(r"^  --([a-z-]+)", said, flags=re.MULTILINE)
    assert options[:5] == ["prompts", "model", "lora", "reward", "method"]
    assert options[-3:] == ["out", "overwrite", "resume"]
    names = [field.name.replace("_", "-") for field in dataclasses.fields(TrainConfig)]
    assert sorted(options) == sorted(set(names) - {"filled"})
