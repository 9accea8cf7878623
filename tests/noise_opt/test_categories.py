"""The classifier of prompts: one case a rule, mixtures, scenes prompts, nonsense."""

import pytest

from align import scenes
from align.language.categories import CATEGORIES, classify


@pytest.mark.parametrize(
    ("prompt", "category"),
    [
        ("a green bench and a blue bowl", "color"),
        ("an oblong cucumber and a teardrop pear", "shape"),
        ("a rubber ball and a plastic bottle", "texture"),
        ("a dog on the left of a chair", "2d_spatial"),
        ("a mouse hidden by a key", "3d_spatial"),
        ("four dogs and three cups", "numeracy"),
        ("a man is playing the guitar", "non_spatial"),
        ("The bright yellow umbrella was next to the old wooden bench.", "complex"),
        ("a cat that is smaller than a shoe", "size"),
        ('a shop sign that says "open"', "text"),
        ("a sad robot", "emotion"),
        ("an old wooden house in a green field gives us a sense of awe", "emotion"),
        ("three cups of hot black coffee stand on a wooden table", "numeracy"),
    ],
)
def test_the_first_guess(prompt, category):
    guess = classify(prompt)
    assert next(iter(guess.shares)) == category
    assert category in guess.why
    assert set(guess.shares) <= set(CATEGORIES)
    assert sum(guess.shares.values()) == pytest.approx(1)


def test_a_prompt_may_be_two_things():
    shares = classify("two dogs behind a sofa").shares
    assert {"numeracy", "3d_spatial"} <= set(shares)
    assert all(0.1 < shares[name] < 0.9 for name in ("numeracy", "3d_spatial"))


@pytest.mark.parametrize("prompt", ["zorp", "a dog", "!!!"])
def test_what_no_rule_reads_is_unknown(prompt):
    guess = classify(prompt)
    assert guess.shares == {}
    assert guess.unknown == 1


def test_scenes_prompts_have_the_category_of_their_grammar():
    for prompt in scenes.prompt_set("scenes-heldout-a")[::50]:
        assert classify(prompt).shares == {scenes.category(prompt): 1.0}
