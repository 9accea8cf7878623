"""What a prompt asks for: shares of categories, by rules over its assertions.

The categories are T2I-CompBench++'s eight, and those that HRS-Bench adds: size comparison, text
(writing in the picture), emotion; its actions are non_spatial. A prompt may be several things at
once, so each gets a share; what the rules cannot read stays unknown. Scenes prompts have the
category of their grammar. How often it is right: scripts/bench/categories.py.
"""

import re
from collections import Counter
from dataclasses import dataclass

from align.language import words as english_words
from align.language.assertions import Assertion
from align.language.decompose import decompose
from align.language.words import VERBS, verb_base, words
from align.scenes import category as scenes_category

COMPBENCH = (
    "color", "shape", "texture", "2d_spatial", "3d_spatial", "non_spatial", "numeracy", "complex",
)  # fmt: skip
ADDED = ("size", "text", "emotion")
CATEGORIES = (*COMPBENCH, *ADDED, "single")


COLORS = english_words.COLORS | words("colored colorful")
SHAPES = english_words.SHAPES | english_words.SIZES | words("sphere cube cone cylinder pyramid")
SHAPES -= words("sharp giant heavy light")
TEXTURES = english_words.TEXTURES - words("solid") | words("fuzzy")
LEFT_RIGHT = re.compile(
    r"\b(left|right|top|bottom|above|below|over|under|underneath|beneath|next to|near|beside|"
    r"(?:on )?(?:the )?side of)\b"
)
DEPTH = re.compile(r"\b(behind|in front of|hidden by|covering|hides?|blocking|obscur\w+)\b")
COMPARED = re.compile(r"\b(bigger|smaller|larger|taller|shorter|longer|wider|thinner) than\b")
WRITING = re.compile(
    r"[\"“](.+?)[\"”]|\b(sign|text|letters|words?|billboard|poster|caption|label)\b"
    r".*\b(says?|saying|reads?|reading|written|that says)\b"
)
EMOTION = re.compile(
    r"\b(happy|happiness|sad|sadness|angry|anger|afraid|scared|fear(ful)?|frightening|terrifying|"
    r"disgust(ed|ing)?|surpris(e|ed|ing)|joy(ful|ous)?|content(ment|ed)|amus(ed|ing|ement)|awe|"
    r"excit(ed|ing|ement)|lonely|loneliness|cheerful|gloomy|delight(ed|ful)?|serene|serenity|"
    r"feel(s|ing|ings)?|sense of|emotions?|nostalgi(a|c)|eerie|sorrow(ful)?|grief|rage|furious)\b"
)
DOING = re.compile(r"\b(?:is|are|was|were)\s+(?:\w+ly\s+)?\w{3,}ing\b")
STACKED = re.compile(r"\b(?:the|an?) [\w-]+, [\w-]+ \w")  # "the sharp, cold edge"
ONE_KIND = 0.55  # share of the attributes from which they are of one kind
COMPLEX = 1.2  # evidence an attribute or relation, where they are of several kinds


@dataclass(frozen=True)
class Guess:
    """Shares of categories, which sum to at most 1 (the rest is unknown), and the evidence."""

    shares: dict[str, float]
    why: str

    @property
    def unknown(self) -> float:
        return max(0.0, 1 - sum(self.shares.values()))


def classify(prompt: str) -> Guess:
    """The categories of a prompt.

    The strongest evidence of a prompt gets most of the weight: shares go with evidence squared.
    """
    try:
        return Guess({scenes_category(prompt): 1.0}, "it is a prompt of the scenes grammar")
    except ValueError:
        pass
    evidence = _evidence(prompt)
    total = sum(value**2 for value in evidence.values())
    if total == 0:
        return Guess({}, "none of the rules reads it")
    shares = {name: value**2 / total for name, value in evidence.items() if value}
    shares = dict(sorted(shares.items(), key=lambda pair: -pair[1]))
    return Guess(shares, ", ".join(f"{name} {evidence[name]:g}" for name in shares))


def _evidence(prompt: str) -> dict[str, float]:
    """How much of each category the prompt holds, in assertions."""
    text = prompt.lower()
    facts = decompose(prompt)
    kinds = Counter(_kind(a) for a in facts if a.kind == "attribute")
    count, named = kinds.total(), ("color", "texture", "shape")
    found: dict[str, float] = dict.fromkeys(CATEGORIES, 0.0)
    for name in named:
        found[name] = float(kinds[name])
    found["size"] = 3.0 * bool(COMPARED.search(text))
    found["numeracy"] = 4.0 * sum(a.kind == "count" for a in facts)
    found["3d_spatial"] = 3.0 * bool(DEPTH.search(text))
    found["2d_spatial"] = 3.0 * bool(LEFT_RIGHT.search(text)) * (not found["3d_spatial"])
    found["text"] = 4.0 * bool(WRITING.search(text))
    found["emotion"] = 5.0 * bool(EMOTION.search(text))
    verbs = sum(verb_base(w) in VERBS for w in re.findall(r"[a-z]+(?:ing|s|ed)\b", text))
    found["non_spatial"] = 1.5 * max(verbs, 2 * len(DOING.findall(text)))
    placed = bool(found["2d_spatial"] or found["3d_spatial"])
    alike = count and max(kinds[name] for name in named) / count >= ONE_KIND
    if count >= 2 and (placed or not alike):
        found["complex"] = COMPLEX * (count + placed + bool(found["non_spatial"]))
    if STACKED.search(text):
        found["complex"] = max(found["complex"], 2.5)
    return found


def _kind(attribute: Assertion) -> str:
    """What an attribute speaks of: color, texture, shape or other."""
    spoken = " ".join(attribute.subject.attributes) if attribute.subject else ""
    said = set(re.findall(r"[a-z]+", spoken))
    if said & COLORS:
        return "color"
    return "texture" if said & TEXTURES else "shape" if said & SHAPES else "other"
