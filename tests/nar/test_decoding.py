"""Cached decoding, likelihoods, sampling and its settings."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from align.nar import NARScheduler, NARTransformer2DModel, NARTransformer3DModel, generate_ids
from align.nar.generate import Decoder, decode
from align.nar.scheduler import draw_uniforms


def make(grid, seed=0, **config):
    settings = {"vocab_size": 19, "width": 24, "num_layers": 2, "num_heads": 2, "ffn_width": 32}
    cls = NARTransformer3DModel if len(grid) == 3 else NARTransformer2DModel
    model = cls(grid_shape=grid, num_classes=5, **(settings | config)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model.requires_grad_(False)


def random_ids(model, batch=2, seed=1):
    generator = torch.Generator().manual_seed(seed)
    size = (batch, model.order.num_tokens)
    return torch.randint(0, model.config.vocab_size, size, generator=generator)


def cached_logits(model, ids, condition, mask=None):
    """Logits of all tokens, raster order, from one cached pass after another."""
    decoder = Decoder(model, len(ids), with_null=False)
    order = model.order
    parts = [decoder.read_condition(condition, mask)]
    for start, end in zip(order.starts[:-2], order.starts[1:-1], strict=True):
        parts.append(decoder.advance(ids[:, order.raster[start:end]]))
    return torch.cat(parts, 1)[:, torch.argsort(order.raster)]


def assert_cached_equals_full(model, condition, mask=None):
    ids = random_ids(model, len(condition))
    full = model.teacher_forced_logits(ids, condition, mask)
    torch.testing.assert_close(
        cached_logits(model, ids, condition, mask), full, atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("grid", [*product(range(1, 7), range(1, 7)), (3, 4, 4), (2, 1, 3)])
def test_cached_logits_equal_uncached(grid):
    assert_cached_equals_full(make(grid), torch.tensor([0, 4]))


VARIANTS = [
    {"branch_depth": 1, "fusion": "gate"},
    {"fusion": "scalar", "position": "learned"},
    {"cond_rope": "identity"},
    {"decoding": "raster"},
    {"decoding": "parallel"},
]


@pytest.mark.parametrize("config", VARIANTS, ids=str)
def test_cached_logits_equal_uncached_in_every_variant(config):
    assert_cached_equals_full(make((4, 6), **config), torch.tensor([0, 4]))


@pytest.mark.parametrize("null_mask", ["prompt", "full"])
def test_padded_text_conditions(null_mask):
    text = {"condition": "text", "condition_width": 6, "num_condition_tokens": 5}
    model = make((3, 4), cond_rope="identity", null_mask=null_mask, **text)
    condition = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 1, 1, 1, 1]]).bool()
    assert_cached_equals_full(model, condition, mask)
    # what stands in padded places makes no difference
    other = torch.where(mask[..., None], condition, torch.tensor(7.0))
    ids = random_ids(model, 3)
    torch.testing.assert_close(model(ids, condition, mask), model(ids, other, mask))
    # the null rows see the prompt's mask (as published) or all of the null condition
    dropped = model(ids, condition, mask, drop=torch.ones(3, dtype=torch.bool))
    null, null_mask_ = model.null(condition, mask)
    torch.testing.assert_close(dropped, model(ids, null, null_mask_))
    assert bool(null_mask_.all()) == (null_mask == "full")


@pytest.mark.parametrize(("grid", "passes"), [((16, 16), 31), ((4, 16, 16), 34)])
def test_forward_passes_of_a_generation(grid, passes):
    model = make(grid, width=8, num_layers=1, ffn_width=8)
    count = 0

    def hook(*_):
        nonlocal count
        count += 1

    model.blocks[0].register_forward_hook(hook)
    ids = generate_ids(model, torch.tensor([1]), guidance_scale=2.0)
    assert count == passes
    assert ids.shape == (1, model.order.num_tokens)


@pytest.mark.parametrize("grid", [(5, 3), (2, 3, 4)])
def test_log_probs_equal_the_sum_of_stepwise_log_probabilities(grid):
    model = make(grid)
    condition = torch.tensor([1, 3, 4])
    uniforms = draw_uniforms(3, model.order.num_tokens, None, condition.device)
    scheduler = NARScheduler()
    fronts = list(decode(model, condition, scheduler, uniforms=uniforms, with_log_probs=True))
    assert [front.index for front in fronts] == list(range(model.order.num_passes))
    exact = model.log_probs(fronts[-1].ids, condition)
    stepwise = torch.cat([front.log_probs for front in fronts], 1)
    torch.testing.assert_close(stepwise, exact[:, model.order.raster], atol=1e-5, rtol=0)
    torch.testing.assert_close(stepwise.sum(1), exact.sum(1), atol=1e-4, rtol=0)


def test_probabilities_of_all_pictures_sum_to_one():
    model = make((2, 2), vocab_size=3)
    every = torch.cartesian_prod(*[torch.arange(3)] * 4)
    total = model.log_probs(every, torch.zeros(81, dtype=torch.long)).sum(1).exp().sum()
    torch.testing.assert_close(total, torch.tensor(1.0), atol=1e-5, rtol=0)


def test_samples_follow_the_models_distribution():
    model = make((2, 2), vocab_size=3)
    condition = torch.zeros(20000, dtype=torch.long)
    ids = generate_ids(model, condition, generator=torch.Generator().manual_seed(0))
    every = torch.cartesian_prod(*[torch.arange(3)] * 4)
    expected = model.log_probs(every, condition[:81]).sum(1).exp()
    code = (ids * torch.tensor([27, 9, 3, 1])).sum(1)
    seen = torch.bincount(code, minlength=81) / len(code)
    assert (seen - expected).abs().max() < 0.01


def test_guidance_equals_the_formula_and_drops_the_null_half_when_off():
    model = make((4, 4))
    condition = torch.tensor([0, 2])
    rows = []
    model.blocks[0].register_forward_hook(lambda m, args, out: rows.append(len(out)))
    ids = generate_ids(model, condition, guidance_scale=3.0, guidance_tokens=3, greedy=True)
    # 0, 1 and 3 tokens are known before the first three passes
    assert rows == [4, 4, 4, 2, 2, 2, 2]
    null = torch.full_like(condition, 5)
    conditional, unconditional = model(ids, condition), model(ids, null)
    mixed = unconditional + 3.0 * (conditional - unconditional)
    guided = torch.tensor([0, 1, 4, 2, 5, 8])
    expected = conditional.argmax(-1)
    expected[:, guided] = mixed.argmax(-1)[:, guided]
    assert torch.equal(ids, expected)
    rows.clear()
    generate_ids(model, condition)
    assert rows == [2] * 7


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_guidance_schedules(schedule):
    scales = NARScheduler(guidance_scale=4.0, guidance_schedule=schedule).guidance_scales(
        tuple(range(6))
    )
    assert scales[-1] == pytest.approx(4.0)
    assert scales[0] == (4.0 if schedule == "constant" else 1.0)
    assert scales == sorted(scales)


@given(st.integers(0, 12), st.floats(0.05, 1.0), st.floats(0.2, 3.0), st.integers(0, 2**31 - 1))
@settings(deadline=None, max_examples=50)
def test_truncation_keeps_the_most_probable_tokens(top_k, top_p, temperature, seed):
    logits = torch.randn(1, 1, 10, generator=torch.Generator().manual_seed(seed))
    scheduler = NARScheduler(temperature, top_k, top_p)
    probs = scheduler.probabilities(logits)[0, 0]
    ranked = (logits[0, 0] / temperature).softmax(-1).sort(descending=True)
    kept = [int(ranked.indices[0])]
    shares = ranked.values[: top_k or 10] / ranked.values[: top_k or 10].sum()
    for index in range(1, len(shares)):
        if top_p < 1 and float(shares[:index].sum()) > top_p:
            break
        kept.append(int(ranked.indices[index]))
    assert set(torch.nonzero(probs).flatten().tolist()) == set(kept)
    torch.testing.assert_close(probs.sum(), torch.tensor(1.0))
    uniforms = torch.tensor([[0.0], [0.5], [1 - 2.0**-24]])
    drawn = scheduler.step(logits.expand(3, 1, 10), uniforms).prev_sample
    assert set(drawn.flatten().tolist()) <= set(kept)


def test_a_picture_with_its_own_generator_is_independent_of_the_batch():
    model = make((4, 4))

    def generators(seeds):
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    both = generate_ids(model, torch.tensor([1, 2]), generator=generators([7, 8]))
    alone = generate_ids(model, torch.tensor([2]), generator=generators([8]))
    assert torch.equal(both[1:], alone)
    again = generate_ids(model, torch.tensor([1, 2]), generator=generators([7, 8]))
    assert torch.equal(both, again)
    assert not torch.equal(both[0], both[1])
    with pytest.raises(ValueError, match="1 generators for a batch of 2"):
        generate_ids(model, torch.tensor([1, 2]), generator=generators([7]))


def test_given_tokens_stay_and_later_tokens_see_them():
    model = make((4, 4))
    condition = torch.tensor([3])
    given_ids = torch.full((1, 16), -1)
    given_ids[0, :4] = torch.tensor([1, 2, 3, 4])
    ids = generate_ids(model, condition, greedy=True, given_ids=given_ids)
    assert ids[0, :4].tolist() == [1, 2, 3, 4]
    expected = model(ids, condition).argmax(-1)
    assert torch.equal(ids[0, 4:], expected[0, 4:])
    assert (generate_ids(model, condition, greedy=True, given_ids=ids) == ids).all()


def test_zero_temperature_is_greedy_and_training_mode_is_restored():
    model = make((3, 3), dropout=0.5).train()
    cold = generate_ids(model, torch.tensor([1]), temperature=0.0)
    assert torch.equal(cold, generate_ids(model, torch.tensor([1]), greedy=True))
    assert model.training


def test_decoding_leaves_the_weights_as_they_are(tmp_path):
    model = make((4, 4))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    ids, condition = random_ids(model), torch.tensor([1, 2])
    logits = model(ids, condition)
    generate_ids(model, condition)
    for key, value in model.state_dict().items():
        assert value.is_contiguous()
        assert torch.equal(value, before[key])
    torch.testing.assert_close(model(ids, condition), logits)
    model.save_pretrained(tmp_path)
    again = NARTransformer2DModel.from_pretrained(tmp_path)
    torch.testing.assert_close(again(ids, condition), logits)


def test_bfloat16_decodes():
    model = make((4, 4)).to(torch.bfloat16)
    assert generate_ids(model, torch.tensor([1]), guidance_scale=2.0).shape == (1, 16)


def test_bfloat16_autocast_decodes():
    model = make((4, 4))
    with torch.autocast("cpu", torch.bfloat16):
        assert generate_ids(model, torch.tensor([1]), guidance_scale=2.0).shape == (1, 16)


def test_fusions_start_as_the_mean():
    ids, condition = torch.arange(12).view(1, 12), torch.tensor([1])
    mean = make((3, 4))
    for fusion in ("scalar", "gate"):
        model = NARTransformer2DModel.from_config(mean.config, fusion=fusion).eval()
        assert model.config.fusion == fusion
        missing = model.load_state_dict(mean.state_dict(), strict=False)
        assert not missing.unexpected_keys
        torch.testing.assert_close(model(ids, condition), mean(ids, condition))


def test_the_mean_is_of_the_heads_that_have_a_neighbour():
    ids, condition = torch.arange(12).view(1, 12), torch.tensor([1])
    mean = make((3, 4))
    logits, (across, down) = mean(ids, condition, return_heads=True)
    expected = (across + down) / 2
    grid = torch.arange(12).view(3, 4)
    left, top = grid[1:, 0], grid[0, 1:]  # nothing stands to the left of these, or above these
    expected[:, left], expected[:, top] = down[:, left], across[:, top]
    torch.testing.assert_close(logits[:, 1:], expected[:, 1:])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"guidance_scale": 0.5}, "guidance scale 0.5: must be at least 1"),
        ({"temperature": -1.0}, "temperature -1.0"),
        ({"top_k": -1}, "top_k -1"),
        ({"top_p": 0.0}, "top_p 0.0"),
        ({"guidance_schedule": "step"}, "guidance schedule 'step'"),
        ({"given_ids": torch.full((1, 9), 19)}, "token id 19 is outside the codebook: 0 to 18"),
        (
            {"given_ids": torch.zeros(1, 8, dtype=torch.long)},
            r"\[batch, 9\] for a grid",
        ),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_settings_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        generate_ids(make((3, 3)), torch.tensor([1]), **call)


@pytest.mark.usefixtures("unchecked")
def test_bad_conditions_and_configs_are_refused():
    model = make((3, 3))
    with pytest.raises(ValueError, match="class 6 is out of range: 0 to 4"):
        generate_ids(model, torch.tensor([6]))
    with pytest.raises(TypeError, match="int64"):
        generate_ids(model, torch.tensor([0.5]))
    text = make((3, 3), condition="text", condition_width=6, num_condition_tokens=5)
    with pytest.raises(ValueError, match=r"\[batch, 5, 6\]"):
        generate_ids(text, torch.zeros(1, 4, 6))
    with pytest.raises(ValueError, match="fusion 'horizontal': must be one of mean, scalar, gate"):
        make((3, 3), fusion="horizontal")
    with pytest.raises(ValueError, match="num_heads 5"):
        make((3, 3), num_heads=5)
    with pytest.raises(ValueError, match="branch_depth 3"):
        make((3, 3), branch_depth=3)
    with pytest.raises(ValueError, match=r"grid shape \(3, 3, 3\)"):
        NARTransformer2DModel(grid_shape=(3, 3, 3))
