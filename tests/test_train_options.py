"""Options of an update, each against an update without it: clipping, offload, compile, bfloat16."""

import functools
import itertools
import math
from types import SimpleNamespace

import pytest
import tiny
import torch
from tiny import build
from train_helpers import run, small_config, small_session, updates_of, weights

from align.alignprop.embeddings import Embeddings
from align.alignprop.update import batch_loss, saved_on_cpu
from align.models.lora import trained_parameters


def updates(folder, count=1, **changes):
    """Updates of a small session: their records, the gradients that the optimizer was given and
    the weights in the end."""
    session, gradients = small_session(folder, steps=count, **changes), []
    session.optimizer.optimizer.register_step_pre_hook(
        lambda *_: gradients.append(torch.cat([p.grad.flatten() for p in session.parameters]))
    )
    records = updates_of(session)
    assert len(gradients) == count
    return records, gradients, weights(session.pipe)


def test_clipping_scales_the_gradient_and_logs_its_norm_before(tmp_path):
    most = 1e-4
    (plain,), (whole,), _ = updates(tmp_path / "a", max_grad_norm=0)
    (record,), (clipped,), _ = updates(tmp_path / "b", max_grad_norm=most)
    norm = whole.norm().item()
    assert norm > 100 * most
    assert plain["grad_norm"] == record["grad_norm"] == pytest.approx(norm, rel=1e-9)
    # torch divides by a little more than the norm
    torch.testing.assert_close(clipped, whole * most / norm, rtol=1e-4, atol=0)
    _, (below,), _ = updates(tmp_path / "c", max_grad_norm=2 * norm)
    assert torch.equal(below, whole)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_offloading_changes_nothing(tmp_path, monkeypatch, checkpointing):
    kept = []

    class Counted(torch.autograd.graph.save_on_cpu):
        def __init__(self, **settings):
            super().__init__(**settings)
            pack = self.pack_hook
            self.pack_hook = lambda tensor: kept.append(tensor.nbytes) or pack(tensor)

    monkeypatch.setattr(torch.autograd.graph, "save_on_cpu", Counted)
    settings = {"count": 2, "checkpointing": checkpointing, "micro_batch_size": 1}
    _, gradients, plain = updates(tmp_path / "a", **settings)
    assert not kept
    _, same, away = updates(tmp_path / "b", offload=True, **settings)
    assert len(kept) > 10
    assert all(map(torch.equal, same, gradients))
    assert torch.equal(away, plain)


def test_weights_are_not_copied_where_the_backward_pass_waits(tmp_path, monkeypatch):
    session, packed = small_session(tmp_path, offload=True, checkpointing=False), []
    saver = torch.autograd.graph.save_on_cpu()

    def pack(tensor):
        packed.append(tensor.untyped_storage().data_ptr())
        return saver.pack_hook(tensor)

    counted = SimpleNamespace(pack_hook=pack, unpack_hook=saver.unpack_hook)
    monkeypatch.setattr(torch.autograd.graph, "save_on_cpu", lambda **settings: counted)
    with saved_on_cpu(session):
        batch_loss(session, 0, [0]).loss.backward()
    parts = (session.pipe.unet, session.pipe.vae)
    weights = {p.untyped_storage().data_ptr() for part in parts for p in part.parameters()}
    assert len(packed) > 100
    assert not weights & set(packed)


@pytest.mark.parametrize("offload", [True, False])
def test_offloaded_text_encoders_are_on_the_device_only_to_encode(tmp_path, monkeypatch, offload):
    pipe, course = build("sd"), []
    # there is no second device here: where the encoder would go is written down
    monkeypatch.setattr(pipe.text_encoder, "to", lambda device: course.append(str(device)))
    pipe.text_encoder.register_forward_hook(lambda *_: course.append("encodes"))
    embed = Embeddings(small_config(tmp_path, offload=offload), pipe, torch.device("meta"))
    for prompts in (["a"], ["a"], ["b"]):  # the second time it is remembered
        assert {rows.device.type for rows in embed(prompts).values()} == {"meta"}
    course = [what for what, _ in itertools.groupby(course)]  # prompt and negative prompt are one
    assert course == (["meta", "encodes", "cpu"] * 2 if offload else ["encodes"])


# torch hides this warning of its compiler itself, which one turned into an error escapes.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_compiling_changes_nothing(tmp_path, monkeypatch):
    """The compiled denoiser runs with a gradient, without, and for the distance to the base
    without its LoRA as well."""
    graphs, real = [], torch.compile
    down, up = ("CrossAttnDownBlock2D",), ("CrossAttnUpBlock2D",)  # few blocks trace sooner
    small = {"down_block_types": down, "up_block_types": up, "block_out_channels": (8,)}
    monkeypatch.setattr(tiny, "unet", functools.partial(tiny.unet, mid_block_type=None, **small))

    def backend(graph, inputs):
        graphs.append(graph)
        return graph  # to run as traced: inductor would take minutes

    settings = {"count": 2, "dtype": torch.float32, "grad_window": "1", "kl_weight": 10.0}
    plain, gradients, reached = updates(tmp_path / "a", **settings)
    monkeypatch.setattr(torch, "compile", functools.partial(real, backend=backend))
    torch._dynamo.reset()
    try:
        records, same, compiled = updates(tmp_path / "b", compile=True, **settings)
    finally:
        torch._dynamo.reset()
    assert graphs
    for one, two in zip(plain, records, strict=True):
        assert one["kl"] > 1e-4  # with the LoRA and without are two things
        assert one["kl"] == pytest.approx(two["kl"], rel=1e-5)
    torch.testing.assert_close(torch.stack(same), torch.stack(gradients), rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(compiled, reached, rtol=0, atol=1e-5)


def test_a_run_in_bfloat16_trains_a_float32_lora(tmp_path):
    pipe, reached = build("sd").to(torch.bfloat16), []
    base = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
    result, _ = run(tmp_path, pipe=pipe, on_step=lambda _: reached.append(weights(pipe)))
    trained = trained_parameters(pipe)
    assert {p.dtype for p in trained.values()} == {torch.float32}
    others = {n: p for n, p in pipe.unet.named_parameters() if n not in trained}
    assert {p.dtype for p in (*others.values(), *pipe.vae.parameters())} == {torch.bfloat16}
    for name, value in others.items():
        assert torch.equal(value, base[name.replace(".base_layer", "")])
    for record in result.metrics:
        assert math.isfinite(record["reward"])
        assert 0 < record["grad_norm"] < math.inf
    assert all("lora_B" not in name or p.abs().max() > 0 for name, p in trained.items())
    assert not torch.equal(reached[0], reached[1])
