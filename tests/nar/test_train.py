"""The three commands on a folder of one's own: tokenizer, train, generate."""

import io
import json
import shutil
import tarfile

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from align.cli import main
from align.commands.nar import draw, generate_nar, load_nar_pipeline
from align.config.nar import NarGenerateConfig, NarTokenizerConfig, NarTrainConfig
from align.nar.training.data import find_pictures, load_pixels
from align.nar.training.fit import batch_indices, lr_factor
from align.nar.training.tokenizer import train_tokenizer
from align.nar.training.train import train_nar
from align.runs.folder import read_metrics

COLORS = {"blue": (30, 60, 220), "red": (220, 40, 30)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve plain pictures in two classes, with captions beside them."""
    root = tmp_path_factory.mktemp("pictures")
    for name, color in COLORS.items():
        (root / name).mkdir()
        for number in range(6):
            shade = tuple(max(channel - 3 * number, 0) for channel in color)
            Image.new("RGB", (20, 16), shade).save(root / name / f"{number}.png")
            (root / name / f"{number}.txt").write_text(f"a {name} picture")
    return root


@pytest.fixture(scope="module")
def tokenizer(folder, tmp_path_factory):
    config = NarTokenizerConfig(
        data=str(folder), image_size=16, patch=4, width=8, levels=(5, 5), steps=60, batch_size=6,
        learning_rate=5e-3, ema_decay=0.9, mixed_precision="no", device="cpu", threads=1,
        out=str(tmp_path_factory.mktemp("runs") / "tokenizer"),
    )  # fmt: skip
    return train_tokenizer(config)


def config(data, image_tokenizer, out, **changed):
    settings = {
        "data": str(data), "tokenizer": str(image_tokenizer), "condition": "class", "width": 16,
        "num_layers": 1, "num_heads": 1, "steps": 6, "batch_size": 4, "checkpoint_every": 2,
        "keep_checkpoints": 9, "warmup_steps": 1, "mixed_precision": "no", "device": "cpu",
        "threads": 1, "out": out and str(out),
    }  # fmt: skip
    return NarTrainConfig(**(settings | changed))


def weights(run, step):
    found = load_file(run / f"checkpoints/step-{step}/model.safetensors")
    return found | {
        f"average.{key}": value
        for key, value in load_file(run / f"checkpoints/step-{step}/average.safetensors").items()
    }


def assert_same(left, right):
    assert left.keys() == right.keys()
    for key, value in left.items():
        assert torch.equal(value, right[key]), key


def test_tokenizer_command_learns_and_writes_its_run(tokenizer):
    run = tokenizer.parent
    records = read_metrics(run)
    assert [record["step"] for record in records] == list(range(1, 61))
    assert records[-1]["mse"] < 0.3 * records[0]["mse"]
    assert json.loads((run / "run.json").read_text())["command"] == "nar tokenizer"
    assert (run / "images/reconstructions.png").is_file()


def test_class_conditional_model_draws_the_right_class(folder, tokenizer, tmp_path):
    out = tmp_path / "run"
    settings = {"steps": 150, "learning_rate": 3e-3, "dropout": 0.0, "ema_decay": 0.9}
    pipeline = train_nar(config(folder, tokenizer, out, checkpoint_every=100, **settings))
    records = read_metrics(out)
    assert records[-1]["loss"] < 0.5 * records[0]["loss"]
    assert (out / "images/samples-000150.png").is_file()
    made = generate_nar(
        NarGenerateConfig(
            model=str(out),
            class_labels=("red", "blue"),
            num_images=4,
            seed=3,
            device="cpu",
            grid="4x4",
            out=str(tmp_path / "pictures"),
        )
    )
    records = read_metrics(made)
    assert [record["prompt"] for record in records] == ["red"] * 4 + ["blue"] * 4
    right = 0
    for record in records:
        image = Image.open(made / record["image"])
        assert image.info["prompt"] == record["prompt"]
        red, _, blue = image.resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))
        right += (red > blue) == (record["prompt"] == "red")
    assert right >= 7
    assert (made / "grid.png").is_file()
    assert pipeline == out / "pipeline"


def test_resumed_training_is_bit_exact(folder, tokenizer, tmp_path):
    straight, cut = tmp_path / "straight", tmp_path / "cut"
    settings = {"head_loss": 0.05, "flip": True, "micro_batch_size": 2, "fusion": "gate"}
    train_nar(config(folder, tokenizer, straight, **settings))
    shutil.copytree(straight, cut)
    for step in (4, 6):
        shutil.rmtree(cut / f"checkpoints/step-{step}")
    train_nar(config(folder, tokenizer, None, resume=str(cut), **settings))
    assert_same(weights(cut, 6), weights(straight, 6))
    losses = [[record["loss"] for record in read_metrics(run)] for run in (straight, cut)]
    assert losses[0] == losses[1]


def test_resumed_tokenizer_training_is_bit_exact(folder, tmp_path):
    def settings(**changed):
        return NarTokenizerConfig(
            data=str(folder), image_size=8, patch=2, width=4, quantizer="vq", codebook_size=8,
            steps=4, batch_size=4, checkpoint_every=2, mixed_precision="no", device="cpu",
            threads=1, **changed,
        )  # fmt: skip

    straight, cut = tmp_path / "straight", tmp_path / "cut"
    train_tokenizer(settings(out=str(straight)))
    shutil.copytree(straight, cut)
    shutil.rmtree(cut / "checkpoints/step-4")
    train_tokenizer(settings(resume=str(cut)))
    assert_same(weights(cut, 4), weights(straight, 4))


def test_micro_batches_do_not_change_the_update(folder, tokenizer, tmp_path):
    settings = {"steps": 2, "dropout": 0.0, "condition_dropout": 0.0}
    train_nar(config(folder, tokenizer, tmp_path / "whole", **settings))
    train_nar(config(folder, tokenizer, tmp_path / "parts", micro_batch_size=1, **settings))
    whole, parts = weights(tmp_path / "whole", 2), weights(tmp_path / "parts", 2)
    for key, value in whole.items():
        torch.testing.assert_close(parts[key], value, atol=2e-5, rtol=1e-4)


def test_text_conditional_training_and_best_of(folder, tokenizer, tmp_path):
    out = tmp_path / "run"
    train_nar(config(folder, tokenizer, out, condition="auto", text_tokens=8, steps=4))
    pipe = load_nar_pipeline(str(out), device="cpu")
    assert pipe.transformer.config.condition == "text"

    class Redness:
        def terms(self, images, prompts, metadata=None):
            return {"red": images[:, 0].mean((1, 2))}

        def combine(self, terms):
            return terms["red"]

    prompts = ["a red picture", "a blue picture"]
    one = draw(pipe, prompts, [1, 2], reward=Redness())
    best = draw(pipe, prompts, [1, 2], reward=Redness(), best_of=4)
    assert (best.scores["reward"] >= one.scores["reward"]).all()
    torch.testing.assert_close(best.images[:, 0].mean((1, 2)), best.scores["reward"])
    again = draw(pipe, prompts[:1], best.seeds[:1])
    torch.testing.assert_close(again.images, best.images[:1])


def test_frozen_text_encoder(folder, tokenizer, tmp_path):
    from align.nar.text import learn_words, small_encoder

    words = learn_words(["a red picture", "a blue picture"], 8)
    encoder = small_encoder(words, 16, 8)
    encoder.save_pretrained(tmp_path / "clip")
    words.save_pretrained(tmp_path / "clip")
    out = tmp_path / "run"
    settings = {"condition": "text", "text_encoder": str(tmp_path / "clip"), "text_tokens": 8}
    train_nar(config(folder, tokenizer, out, steps=2, **settings))
    pipe = load_nar_pipeline(str(out), device="cpu")
    for key, value in encoder.state_dict().items():
        assert torch.equal(pipe.text_encoder.state_dict()[key], value), key
    assert pipe.transformer.config.use_condition_mask
    assert draw(pipe, ["a red picture"], [0]).images.shape == (1, 3, 16, 16)


def test_batches_are_permutations_epoch_by_epoch():
    seen = [i for update in range(5) for i in batch_indices(0, update, 4, 10)]
    assert sorted(seen[:10]) == list(range(10))
    assert sorted(seen[10:]) == list(range(10))
    assert seen[:10] != seen[10:]
    assert seen[:4] != batch_indices(1, 0, 4, 10)


def test_published_learning_rate_steps():
    factors = [lr_factor("paper-steps", update, 300, 0) for update in (0, 149, 150, 200, 250)]
    assert factors == pytest.approx([1, 1, 0.2, 0.04, 0.008])
    assert NarTrainConfig(preset="paper").batch_size == 256
    assert NarTrainConfig(preset="paper", batch_size=8).batch_size == 8


def test_tar_files_and_metadata_are_read(folder, tmp_path):
    file = tmp_path / "part.tar"
    with tarfile.open(file, "w") as archive:
        for number, name in enumerate(COLORS):
            picture = (folder / name / "0.png").read_bytes()
            for suffix, data in ((".png", picture), (".cls", name.encode()), (".txt", b"x y")):
                member = tarfile.TarInfo(f"{number:03d}{suffix}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    pictures = find_pictures(str(file))
    assert [(picture.label, picture.caption) for picture in pictures] == [
        ("blue", "x y"), ("red", "x y"),
    ]  # fmt: skip
    direct = find_pictures(str(folder))[0]
    assert torch.equal(load_pixels(pictures[0], (8, 8)), load_pixels(direct, (8, 8)))
    flat = tmp_path / "flat"
    flat.mkdir()
    shutil.copy(folder / "red/0.png", flat / "a.png")
    (flat / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "so red"}\n')
    (picture,) = find_pictures(str(flat))
    assert (picture.label, picture.caption) == (None, "so red")


def test_bad_input_is_refused_in_a_sentence(folder, tokenizer, tmp_path):
    def refused(error, message, **changed):
        good = {"data": str(folder), "image_tokenizer": str(tokenizer)}
        with pytest.raises(error, match=message):
            train_nar(config(**(good | changed), out=tmp_path / "never"))
        assert not (tmp_path / "never").exists()

    refused(ValueError, "there is no data", data="")
    refused(FileNotFoundError, "there is no folder", data=str(tmp_path / "absent"))
    refused(FileNotFoundError, "no image tokenizer in", image_tokenizer=str(folder))
    refused(ValueError, "grid is 8x8, but the tokenizer makes 4x4 tokens", grid="8x8")
    with pytest.raises(ValueError, match="grid is '16'"):
        NarTrainConfig(grid="16")
    with pytest.raises(ValueError, match="image_size is 30"):
        NarTokenizerConfig(image_size=30)
    with pytest.raises(ValueError, match=r"guidance_scale is 0\.5"):
        NarGenerateConfig(guidance_scale=0.5)
    with pytest.raises(ValueError, match="best_of needs a reward"):
        NarGenerateConfig(best_of=4)
    empty = tmp_path / "empty"
    empty.mkdir()
    refused(ValueError, "has no pictures", data=str(empty))
    (empty / "a.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"a\.png cannot be read as a picture"):
        load_pixels(find_pictures(str(empty))[0], (8, 8))
    refused(ValueError, "1 pictures have no caption", data=str(empty), condition="text")


def test_generating_refuses_what_the_model_cannot_draw(folder, tokenizer, tmp_path):
    out = tmp_path / "run"
    train_nar(config(folder, tokenizer, out, steps=1))

    def refused(message, **changed):
        with pytest.raises(ValueError, match=message):
            generate_nar(NarGenerateConfig(model=str(out), device="cpu", **changed))

    refused("unknown class 'green': known are blue, red", class_labels=("green",))
    refused("give --class-labels", prompt=("a red picture",))
    refused(r"give --class-labels \(blue, red\)")
    refused("draws 4x4 tokens", grid="8x8", class_labels=("red",))
    with pytest.raises(FileNotFoundError, match="there is no model"):
        load_nar_pipeline(str(tmp_path / "absent"))
    with pytest.raises(ValueError, match="is no NAR pipeline"):
        load_nar_pipeline(str(folder))


def test_the_three_commands(folder, tmp_path, capsys):
    first, second, third = (str(tmp_path / name) for name in ("tokenizer", "model", "pictures"))
    common = ["--device", "cpu", "--threads", "1", "--mixed-precision", "no", "--batch-size", "4"]
    sizes = ["--image-size", "16", "--patch", "4", "--width", "4", "--levels", "5", "5"]
    data = ["--data", str(folder)]
    assert main(["nar", "tokenizer", *data, *sizes, "--steps", "2", *common, "--out", first]) == 0
    model = ["--width", "8", "--num-layers", "1", "--num-heads", "1", "--condition", "class"]
    train = ["nar", "train", *data, "--tokenizer", first, *model, *common]
    assert main([*train, "--steps", "2", "--out", second]) == 0
    assert main([*train, "--steps", "2", "--out", second]) == 2
    assert "not empty" in capsys.readouterr().err
    assert main(["nar", "train", "--resume", second, "--steps", "3"]) == 0
    assert [record["step"] for record in read_metrics(second)] == [1, 2, 3]
    generate = ["nar", "generate", "--model", second, "--device", "cpu", "--out", third]
    assert main([*generate, "--class-labels", "red", "blue"]) == 0
    assert len(list((tmp_path / "pictures/images").glob("*.png"))) == 2
    capsys.readouterr()
    assert main([*generate, "--overwrite", "--class-labels", "green"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "align: unknown class 'green': known are blue, red"
