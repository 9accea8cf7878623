"""The closed word classes that `english` reads descriptions with, and forms of words."""

import re


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_COUNTED = "one two three four five six seven eight nine ten eleven twelve"
NUMBERS = {word: n for n, word in enumerate(_COUNTED.split(), start=1)}
NUMBER_WORDS = {n: word for word, n in NUMBERS.items()}
DETERMINERS = words("""
a an the this that these those some his her its their my your our each every several many few
another both
""")
_PREPOSITIONS = """
to the left of|on the left of|on the left side of|left of|to the right of|on the right of|on the
right side of|right of|on the top of|on top of|above|over|on the bottom of|below|under|underneath|
beneath|in front of|behind|hidden by|partly hidden by|next to|on the side of|on side of|beside|near|
close to|by|inside|outside|in|on|at|between|around|against|along|across|through|into|onto|toward|
towards|off|upon|among|beyond|covering|with|from|for|to|without|during|about|like|as|of
"""
# as lists of words, longest first
PREPOSITIONS = sorted((p.split() for p in _PREPOSITIONS.split("|")), key=len, reverse=True)
# these join phrases but state no place
JOINING = words("with from for to without during about like as of")
COPULAS = words("is are was were be been being am has have had")
BOUNDARIES = words("""
and or but while , . ; : ! ? who which there here then not also together away outdoors indoors
""")
PRONOUNS = words("it he she they them him himself herself themselves each other")
PICTURES = words("photo photograph picture image painting drawing illustration portrait")
COLORS = words("""
red orange yellow green blue purple violet pink brown black white grey gray golden gold silver
beige teal turquoise cyan magenta maroon navy cream tan lavender crimson
""")
SIZES = words("""
big small large little tiny huge giant tall short long wide narrow thick thin heavy light
""")
SHAPES = words("""
round square oval rectangular triangular circular spherical cubic conical cylindrical pyramidal
pentagonal hexagonal octagonal diamond teardrop oblong flat curved pointed sharp crescent
""")
TEXTURES = words("""
wooden metallic metal leather glass plastic rubber fabric fluffy cotton wool woolen silk stone
brick concrete ceramic paper velvet denim furry steel marble smooth rough soft hard shiny matte
striped checkered spotted solid
""")
ATTRIBUTES = (
    COLORS
    | SIZES
    | SHAPES
    | TEXTURES
    | words("""
old young new modern ancient vintage sleek sturdy elegant cute open closed empty full bright dark
dim warm cold hot wet dry clean dirty delicate vibrant colorful fresh ripe sweet vast deep high low
beautiful quiet busy gentle
""")
)
VERBS = words("""
sit stand lie lay hold walk run jump play eat drink read write watch look ride drive fly swim sleep
rest lean hang wear carry push pull throw catch kick hit cook cut paint draw sing dance talk speak
smile laugh cry work use make take give show have hug kiss chase climb cross fall float glow grow
cover surround contain reflect shine wait visit enjoy share learn teach study practice exercise
perform feed pet wash clean build fix open close touch reach point face gaze stare pose travel fish
surf ski skate hike camp celebrate listen discuss help prepare serve place perch sprawl nestle tower
adorn decorate fill frame line blow
""")
IRREGULAR = {
    "people": "person", "men": "man", "women": "woman", "children": "child", "mice": "mouse",
    "feet": "foot", "teeth": "tooth", "geese": "goose", "knives": "knife", "wolves": "wolf",
    "leaves": "leaf", "shelves": "shelf", "loaves": "loaf", "sheep": "sheep", "fish": "fish",
    "deer": "deer", "scissors": "scissors", "glasses": "glass", "potatoes": "potato",
    "tomatoes": "tomato",
}  # fmt: skip


def singular(noun: str) -> str:
    """The singular of a plural noun (of its last word, in a compound)."""
    *before, last = noun.split()
    if last in IRREGULAR:
        last = IRREGULAR[last]
    elif last.endswith("ies") and len(last) > 4:
        last = last[:-3] + "y"
    elif re.search(r"(ss|sh|ch|x|z)es$", last):
        last = last[:-2]
    elif last.endswith("s") and not last.endswith(("ss", "us", "is")):
        last = last[:-1]
    return " ".join([*before, last])


def is_plural(noun: str) -> bool:
    return singular(noun) != noun or noun.split()[-1] in ("sheep", "fish", "deer")


def verb_base(word: str) -> str | None:
    """The base of a known verb's inflected form (`walking`, `sits`), or None."""
    for ending, restore in (("ing", ("", "e")), ("es", ("",)), ("ed", ("", "e")), ("s", ("",))):
        stem = word.removesuffix(ending)
        if stem != word:
            doubled = stem[:-1] if len(stem) > 2 and stem[-1] == stem[-2] else stem
            for base in (*(stem + end for end in restore), doubled):
                if base in VERBS:
                    return base
    return word if word in VERBS else None


def participle(verb: str) -> str:
    base = verb_base(verb) or verb
    if verb.endswith("ing"):
        return verb
    if base == "lie":
        return "lying"
    if base.endswith("e") and not base.endswith("ee"):
        return base[:-1] + "ing"
    doubles = re.fullmatch(r"(sit|run|swim|cut|hug|pet|hit)", base)
    return base + (base[-1] if doubles else "") + "ing"


def plural_of(noun: str) -> str:
    *before, last = noun.split()
    irregular = {one: many for many, one in IRREGULAR.items()}
    if last in irregular:
        last = irregular[last]
    elif re.search(r"(s|sh|ch|x|z)$", last):
        last += "es"
    elif re.search(r"[^aeiou]y$", last):
        last = last[:-1] + "ies"
    else:
        last += "s"
    return " ".join([*before, last])
