"""`align nar convert`: a raster model becomes NAR, and is fine-tuned in two stages."""

import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from align.cli import main
from align.config.nar import NarConvertConfig
from align.nar import NARPipeline, NARScheduler, NARTransformer2DModel
from align.nar.load import load_nar_pipeline
from align.nar.reference import load_reference
from align.nar.tokenizer import ImageTokenizer
from align.nar.training.convert import convert_nar, convert_raster, is_new
from align.runs.folder import read_metrics

SIZES = {"vocab_size": 9, "width": 16, "num_heads": 2, "ffn_width": 16, "num_classes": 2}


def raster(**changes):
    torch.manual_seed(0)
    settings = {"grid_shape": (2, 2), "num_layers": 2, "decoding": "raster", "dropout": 0.0}
    model = NARTransformer2DModel(**SIZES | settings | changes).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures")
    for name, color in (("blue", (30, 60, 220)), ("red", (220, 40, 30))):
        (root / name).mkdir()
        for number in range(4):
            Image.new("RGB", (8, 8), tuple(c - 5 * number for c in color)).save(
                root / name / f"{number}.png"
            )
    return root


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The folder of a raster pipeline of the classes blue and red."""
    torch.manual_seed(1)
    tokenizer = ImageTokenizer(image_size=(8, 8), widths=(8, 8, 8), blocks=1, levels=(3, 3)).eval()
    pipe = NARPipeline(raster(), tokenizer, NARScheduler(), id2label={0: "blue", 1: "red"})
    folder = tmp_path_factory.mktemp("raster")
    pipe.save_pretrained(folder)
    return folder


def config(source, pictures, out, **changes):
    settings = {
        "model": str(source), "data": str(pictures), "steps": 10, "frozen_share": 0.5,
        "batch_size": 4, "learning_rate": 1e-2, "checkpoint_every": 1, "keep_checkpoints": 99,
        "mixed_precision": "no", "device": "cpu", "threads": 1, "out": out and str(out),
    }  # fmt: skip
    return NarConvertConfig(**settings | changes)


@pytest.mark.parametrize("grid", [(1, 6), (6, 1)])
def test_where_both_orders_agree_the_converted_model_is_the_teacher(grid):
    """In one row or one column a wavefront is a token, so nothing may change."""
    teacher = raster(grid_shape=grid)
    student = convert_raster(teacher)
    ids = torch.randint(9, (3, 6), generator=torch.Generator().manual_seed(2))
    labels = torch.tensor([0, 1, 2])
    with torch.no_grad():
        torch.testing.assert_close(student(ids, labels), teacher(ids, labels))


def test_branch_and_gate_start_as_the_recipe_says():
    student = convert_raster(raster(grid_shape=(3, 3), num_layers=3), branch_depth=2)
    weights = student.state_dict()
    for key in [k for k in weights if k.startswith("blocks.3.")]:
        assert torch.equal(weights[key], weights[key.replace("blocks.3.", "blocks.1.")]), key
    assert torch.equal(weights["head_outputs.0.weight"], weights["head_outputs.1.weight"])
    assert not weights["gate.score.weight"].any()
    assert (student.order.num_passes, student.config.fusion) == (5, "gate")
    beside = convert_raster(raster(grid_shape=(3, 3)))
    ids, labels = torch.zeros(1, 9, dtype=torch.long), torch.tensor([1])
    with torch.no_grad():
        _, heads = beside(ids, labels, return_heads=True)
    assert len(heads) == 2
    # the first token is predicted by both from the condition
    torch.testing.assert_close(heads[0][:, 0], heads[1][:, 0])


def test_two_stages(source, pictures, tmp_path):
    out = tmp_path / "run"
    convert_nar(config(source, pictures, out))
    steps = [load_file(out / f"checkpoints/step-{n}/model.safetensors") for n in (1, 5, 10)]

    def moved(first, second):
        """How far the new parts and the trunk have gone between two checkpoints."""
        found = {True: 0.0, False: 0.0}
        for key, value in second.items():
            found[is_new(key, 2)] += float((value - first[key]).abs().sum())
        return found

    frozen, thawed = moved(steps[0], steps[1]), moved(steps[1], steps[2])
    assert frozen[False] == 0
    assert frozen[True] > 0
    assert thawed[False] > 0
    teacher = load_nar_pipeline(str(source), "cpu").transformer.state_dict()
    for key, value in teacher.items():
        assert torch.equal(steps[1][f"transformer.{key}"], value), key
    records = read_metrics(out)
    assert {"head_0", "head_1"} <= records[0].keys()
    assert records[-1]["cross_entropy"] < records[0]["cross_entropy"]
    drawn = load_nar_pipeline(str(out), "cpu")(class_labels="red", output_type="pt").images
    assert drawn.shape == (1, 3, 8, 8)


def test_resumed_across_the_stages_is_bit_exact(source, pictures, tmp_path):
    straight, cut = tmp_path / "straight", tmp_path / "cut"
    convert_nar(config(source, pictures, straight, steps=6, flip=True))
    shutil.copytree(straight, cut)
    for step in (3, 4, 5, 6):
        shutil.rmtree(cut / f"checkpoints/step-{step}")
    convert_nar(config(source, pictures, None, resume=str(cut), steps=6, flip=True))
    one, other = (
        load_file(run / "checkpoints/step-6/model.safetensors") for run in (straight, cut)
    )
    for key, value in one.items():
        assert torch.equal(value, other[key]), key


def test_a_llamagen_checkpoint_is_read_by_its_keys(tmp_path):
    teacher = raster()
    names = {
        "token_embedding.weight": "tok_embeddings.weight", "head_norms.0.weight": "norm.weight",
        "head_outputs.0.weight": "output.weight",
        "class_embedding.weight": "cls_embedding.embedding_table.weight",
    }  # fmt: skip
    parts = {
        "attention.qkv": "attention.wqkv", "attention.out": "attention.wo",
        "ffn.gate": "feed_forward.w1", "ffn.up": "feed_forward.w3", "ffn.down": "feed_forward.w2",
    }  # fmt: skip
    state = {}
    for key, value in teacher.state_dict().items():
        theirs = names.get(key, key.replace("blocks.", "layers."))
        for ours, original in parts.items():
            theirs = theirs.replace(ours, original) if key not in names else theirs
        state[theirs] = value
    loaded = load_reference(state, num_heads=2, grid_shape=(2, 2), decoding="raster")
    ids, labels = torch.tensor([[1, 2, 3, 4]]), torch.tensor([1])
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids, labels), teacher(ids, labels))
    with pytest.raises(ValueError, match=r"keys do not fit: unexpected lm_head\.weight"):
        load_reference(
            state | {"lm_head.weight": torch.zeros(1)},
            num_heads=2, grid_shape=(2, 2), decoding="raster",
        )  # fmt: skip
    torch.save(state | {"lm_head.weight": torch.zeros(1)}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"keys do not fit: unexpected lm_head\.weight"):
        convert_nar(NarConvertConfig(
            model=str(tmp_path / "model.pt"), num_heads=2, grid="2x2", tokenizer="vq.pt"
        ))  # fmt: skip


def test_command_converts_without_training(source, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["nar", "convert", "--model", str(source), "--steps", "0", "--out", str(out)]) == 0
    pipe = load_nar_pipeline(str(out), "cpu")
    assert pipe.transformer.config.decoding == "wavefront"
    assert pipe.config.id2label == {"0": "blue", "1": "red"}
    capsys.readouterr()
    again = ["nar", "convert", "--model", str(out), "--steps", "0", "--out", str(tmp_path / "b")]
    assert main(again) == 2
    assert "only a raster model of pictures can be converted" in capsys.readouterr().err


def test_bad_input_is_refused_in_a_sentence(source, pictures, tmp_path):
    with pytest.raises(ValueError, match="branch_depth is 3; the trunk's depth allows 1 to 2"):
        convert_raster(raster(), branch_depth=3)
    with pytest.raises(ValueError, match="there is no model"):
        convert_nar(NarConvertConfig())
    (tmp_path / "x.pt").write_bytes(b"")
    with pytest.raises(ValueError, match="is a checkpoint: give --num-heads"):
        convert_nar(NarConvertConfig(model=str(tmp_path / "x.pt")))
    with pytest.raises(ValueError, match="there is no data"):
        convert_nar(config(source, "", tmp_path / "never"))
    other = tmp_path / "other/green"
    other.mkdir(parents=True)
    shutil.copy(pictures / "red/0.png", other / "0.png")
    with pytest.raises(ValueError, match="is of class 'green'; known: blue, red"):
        convert_nar(config(source, other.parent, tmp_path / "never"))
    assert not (tmp_path / "never").exists()
