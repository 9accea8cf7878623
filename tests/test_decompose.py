"""Decomposition: scenes prompts exactly, other English by rules, caches and language models."""

import json
import random
from collections import Counter

import pytest

from align.language.assertions import Assertion, Thing
from align.language.decompose import decompose, read_cache
from align.scenes import CATEGORIES, describe
from align.scenes.dataset import random_stated_scene
from align.scenes.grammar import COLORS, NUMBERS, PLURALS, SIZES, TEXTURES


def implied_facts(scene) -> set:
    """What a scene states, straight from its objects and relations."""
    looks = Counter((o.color, o.shape) for o in scene.objects)
    facts = set()
    for o in scene.objects:
        facts |= {("shape", o.shape), ("color", o.color, o.shape)}
        facts |= {("style", s, o.color, o.shape) for s in (o.texture, o.size) if s}
    for (color, shape), n in looks.items():
        if n > 1 or scene.counted:
            facts.add(("count", n, color, shape))
    for relation in scene.relations:
        a, b = scene.objects[relation.first], scene.objects[relation.second]
        facts.add(("relation", a.color, a.shape, relation.kind, b.color, b.shape))
    return facts


def asserted_fact(assertion: Assertion) -> tuple:
    """The same fact, read from the words of an assertion's question only."""
    words = assertion.question.rstrip("?").split()
    singulars = {plural: shape for shape, plural in PLURALS.items()}
    words = [singulars.get(word, word) for word in words]
    if words[0] == "Is" and words[1] == "the":
        where = words.index("the", 2)
        first, kind = words[2:4], " ".join(words[4:where])
        return ("relation", *first, kind, *words[where + 1 :])
    if "exactly" in words:
        return ("count", NUMBERS.index(words[3]) + 1, words[4], words[5])
    if words[:2] == ["Are", "all"]:
        return ("style", words[4], words[2], words[3])
    said = words[3:]
    if len(said) == 1:
        return ("shape", *said)
    return ("color", *said) if len(said) == 2 else ("style", *said)


@pytest.mark.parametrize("category", CATEGORIES)
def test_every_form_of_a_scenes_prompt_gives_the_facts_of_its_scene(category):
    rng = random.Random(category)
    for i in range(150):
        scene = random_stated_scene(category, rng, heldout=bool(i % 2))
        for prompt in {describe(scene), *(describe(scene, rng) for _ in range(3))}:
            assertions = decompose(prompt)
            facts = [asserted_fact(a) for a in assertions]
            assert set(facts) == implied_facts(scene), prompt
            assert len(facts) == len(set(facts))


def test_the_parts_of_an_assertion_say_what_its_question_says():
    *_, relation = decompose("a large striped red circle to the left of an orange ring")
    assert relation == Assertion(
        "relation",
        "Is the red circle left of the orange ring?",
        Thing("circle", ("red",)),
        "left of",
        Thing("ring", ("orange",)),
    )
    count = decompose("two small green stars")[-1]
    assert (count.kind, count.subject, count.count) == ("count", Thing("star", ("green",)), 2)


def questions(prompt: str) -> list[str]:
    return [a.question for a in decompose(prompt)]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        (
            "a green bench and a blue bowl",
            ["Is there a bench?", "Is there a green bench?", "Is there a bowl?",
             "Is there a blue bowl?"],
        ),
        (
            "The red hat was on top of the brown coat.",
            ["Is there a hat?", "Is there a red hat?", "Is there a coat?",
             "Is there a brown coat?", "Is the red hat on top of the brown coat?"],
        ),
        (
            "A bathroom with green tile and a red shower curtain.",
            ["Is there a bathroom?", "Is there a tile?", "Is there a green tile?",
             "Is there a shower curtain?", "Is there a red shower curtain?"],
        ),
        ("a dog on the right of a chair",
         ["Is there a dog?", "Is there a chair?", "Is the dog on the right of the chair?"]),
        (
            "seven lanterns, four sheep and two phones",
            ["Is there a lantern?", "Are there exactly seven lanterns?", "Is there a sheep?",
             "Are there exactly four sheep?", "Is there a phone?",
             "Are there exactly two phones?"],
        ),
        (
            "A person is walking with a friend and holding hands.",
            ["Is there a person?", "Is there a friend?", "Are there hands?",
             "Is the person walking with the friend?", "Is the person holding the hands?"],
        ),
        (
            "The round table and the square chair sit next to the fluffy rug.",
            ["Is there a table?", "Is there a round table?", "Is there a chair?",
             "Is there a square chair?", "Is there a rug?", "Is there a fluffy rug?",
             "Is the round table sitting next to the fluffy rug?",
             "Is the square chair sitting next to the fluffy rug?"],
        ),
        (
            "The bench was wooden and the sky is blue.",
            ["Is there a bench?", "Is there a wooden bench?", "Is there a sky?",
             "Is there a blue sky?"],
        ),
        ("a photo of a cat", ["Is there a cat?"]),
        ("a bowl of fruit without spoons", ["Is there a bowl of fruit?"]),
        ("!!!", ['Does the picture show "!!!"?']),
    ],
)  # fmt: skip
def test_ordinary_english(prompt, expected):
    assert questions(prompt) == expected


def test_every_attribute_word_of_the_scenes_world_is_understood_in_other_sentences():
    for word in (*COLORS, *SIZES, *TEXTURES):
        assert f"{word} vase?" in questions(f"there is a {word} vase on the old table")[1]


def test_a_language_model_is_asked_once_and_remembered(tmp_path):
    asked = []

    def llm(instruction: str) -> str:
        asked.append(instruction)
        return "object: Is there a cat?\n\nattribute: Is the cat black?\n"

    cache = tmp_path / "questions.json"
    first = decompose("a black cat", llm=llm, cache=cache)
    assert [(a.kind, a.question) for a in first] == [
        ("object", "Is there a cat?"),
        ("attribute", "Is the cat black?"),
    ]
    assert decompose("a black cat", llm=llm, cache=cache) == first
    assert len(asked) == 1
    assert asked[0].endswith("a black cat")
    assert read_cache(cache) == {"a black cat": first}


def test_a_file_of_bare_questions_is_a_cache(tmp_path):
    cache = tmp_path / "questions.json"
    cache.write_text(json.dumps({"a cat": ["is there a cat?"]}))
    assert decompose("a cat", cache=cache) == (Assertion("object", "is there a cat?"),)
    assert decompose("a red circle", cache=cache) == decompose("a red circle")


@pytest.mark.usefixtures("unchecked")
def test_bad_input(tmp_path):
    with pytest.raises(ValueError, match="empty prompt"):
        decompose("  ")
    with pytest.raises(TypeError, match="a prompt is a str, got int"):
        decompose(3)
    with pytest.raises(ValueError, match=r"expected KIND: QUESTION .* got 'yes'"):
        decompose("a cat", llm=lambda text: "yes")
    with pytest.raises(ValueError, match="named no question"):
        decompose("a cat", llm=lambda text: "\n")
    bad = tmp_path / "bad.json"
    for content in ("{", "[]", '{"a": [3]}'):
        bad.write_text(content)
        with pytest.raises(ValueError, match=r"bad.json is no JSON file of prompts"):
            decompose("a cat", cache=bad)
