"""Moving scenes: prompts, clips and the verifier of clips."""

import dataclasses
import random

import pytest
import torch

from align.scenes import is_heldout
from align.scenes.motion import (
    DIRECTIONS,
    MovingScene,
    describe_motion,
    is_heldout_motion,
    motion_prompts,
    parse_motion,
    place_motion,
    render_clip,
    sample_clip,
)
from align.scenes.motion_verifier import verify_clips


def tensor(*clips):
    return torch.stack([torch.from_numpy(c) for c in clips]).permute(0, 1, 4, 2, 3) / 255


def test_every_form_parses_back():
    rng = random.Random(0)
    forms = set()
    for _ in range(200):
        prompt, _ = sample_clip(rng) if len(forms) < 3 else (None, None)
        scene = MovingScene("orange", "cross", rng.choice(list(DIRECTIONS)))
        text = prompt or describe_motion(scene, rng)
        parsed = parse_motion(text)
        assert prompt or parsed == scene
        assert parse_motion(describe_motion(parsed)) == parsed
        forms.add(text)
    assert len(forms) > 20


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("a red circle", "does not end in a direction: moving right, moving left"),
        ("a red circle moving sideways", "does not end in a direction"),
        ("a red circle and a blue star moving up", "moves more than a plain object"),
        ("a striped red circle moving up", "without size, texture or count"),
        ("two red circles moving up", "moves more than a plain object"),
        ("a pink circle moving up", "cannot read 'pink'"),
    ],
)
def test_other_prompts_are_refused(prompt, message):
    with pytest.raises(ValueError, match=message):
        parse_motion(prompt)


def test_held_out_objects_are_those_of_the_pictures():
    assert is_heldout_motion("a red star moving up") == is_heldout("a red star")
    seen, held = motion_prompts(), motion_prompts(heldout=True)
    assert len(seen) + len(held) == 8 * 6 * 4
    assert not any(map(is_heldout_motion, seen))
    assert held
    rng = random.Random(1)
    assert not any(is_heldout_motion(sample_clip(rng)[0]) for _ in range(10))
    assert is_heldout_motion(sample_clip(rng, heldout=True)[0])


def test_paths_stay_inside_and_go_where_they_should():
    for seed in range(200):
        rng = random.Random(seed)
        scene = place_motion(MovingScene("red", "star", rng.choice(list(DIRECTIONS))), rng)
        dx, dy = DIRECTIONS[scene.direction]
        for far in (0, scene.travel):
            for place in (scene.x + dx * far, scene.y + dy * far):
                assert 1 + scene.r - 1e-9 <= place <= 63 - scene.r + 1e-9


def test_true_clips_pass_and_wrong_ones_do_not():
    rng = random.Random(3)
    for direction in ("left", "down"):
        scene = place_motion(
            MovingScene(rng.choice(("red", "cyan")), rng.choice(("cross", "ring")), direction), rng
        )
        clip = tensor(render_clip(scene))
        prompt = describe_motion(scene)
        (verdict,) = verify_clips([prompt], clip)
        assert verdict.exact
        assert verdict.frames == 1.0
        (backwards,) = verify_clips([prompt], clip.flip(1))
        assert (backwards.frames, backwards.direction, backwards.exact) == (1.0, False, False)
        other = dataclasses.replace(scene, color="green")
        (recolored,) = verify_clips([describe_motion(other)], clip)
        assert (recolored.frames, recolored.direction) == (0.0, False)
        (still,) = verify_clips([prompt], clip[:, :1].expand_as(clip))
        assert not still.direction
        broken = clip.clone()
        broken[:, :2] = 0.5  # two frames of eight without the object
        (verdict,) = verify_clips([prompt], broken)
        assert verdict.frames == 0.75
        assert verdict.direction
        assert not verdict.exact


@pytest.mark.usefixtures("unchecked")
def test_bad_shapes_are_refused():
    with pytest.raises(ValueError, match=r"clips are \[batch, frames, 3, height, width\]"):
        verify_clips(["a red circle moving up"], torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="needs a prompt for each of 2 clips"):
        verify_clips(["a red circle moving up"], torch.zeros(2, 4, 3, 8, 8))
