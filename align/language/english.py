"""Rules that split an English picture description, as in T2I-CompBench++, into assertions.

A left-to-right chunker over closed word classes: noun phrases (determiner or number, attributes,
noun), what joins them (prepositions, verbs, "is"), and nothing else. It needs no model and is
predictable; what it cannot take apart becomes one question about the whole description.
"""

import re
from dataclasses import dataclass, field

from align.language.assertions import (
    Assertion,
    Thing,
    attribute_assertion,
    count_assertion,
    object_assertion,
    relation_assertion,
)
from align.language.words import (
    ATTRIBUTES,
    BOUNDARIES,
    COPULAS,
    DETERMINERS,
    JOINING,
    NUMBER_WORDS,
    NUMBERS,
    PICTURES,
    PREPOSITIONS,
    PRONOUNS,
    is_plural,
    participle,
    plural_of,
    singular,
    verb_base,
)

_ADJECTIVE = re.compile(r".+(ful|ous|less|ish|ive|able|ible|shaped|colored|-.+)$")


@dataclass
class _Phrase:
    """A noun phrase while it is read."""

    noun: str
    attributes: list[str] = field(default_factory=list)
    count: int | None = None
    plural: bool = False

    @property
    def thing(self) -> Thing:
        return Thing(self.noun, tuple(self.attributes))


class _Chunker:
    """Reads the words of one description from left to right."""

    def __init__(self, text: str):
        self.words = re.findall(r"[a-z0-9][a-z0-9'-]*|[,.;:!?]", text.lower())
        self.at = 0
        self.phrases: list[_Phrase] = []
        self.relations: list[Assertion] = []

    def word(self, ahead: int = 0) -> str:
        at = self.at + ahead
        return self.words[at] if at < len(self.words) else "."

    def preposition(self, ahead: int = 0) -> str | None:
        at = self.at + ahead
        for words in PREPOSITIONS:
            if self.words[at : at + len(words)] == words:
                return " ".join(words)
        return None

    def ends_phrase(self, ahead: int) -> bool:
        """Whether no noun phrase goes on with the word `ahead`."""
        word = self.word(ahead)
        return (
            word in BOUNDARIES or word in COPULAS or word in DETERMINERS or word in PRONOUNS
            or word in NUMBERS or word.isdigit() or self.preposition(ahead) is not None
        )  # fmt: skip

    def is_verb(self, ahead: int, plural: bool) -> bool:
        word = self.word(ahead)
        base = verb_base(word)
        if word.endswith("ing") and len(word) > 4:
            return base is not None or self.ends_phrase(ahead + 1)
        return base is not None and (plural or word != base)

    def is_attribute(self, word: str) -> bool:
        """Whether `word`, before another word of its phrase, describes and is no part of a name."""
        described = word.endswith(("ing", "ed", "lit", "y"))
        return word in ATTRIBUTES or described or _ADJECTIVE.fullmatch(word) is not None

    def read_phrase(self, coordinated: bool = False) -> _Phrase | None:
        """Read a noun phrase here, or return None and stay.

        `coordinated`: it may be the second of two subjects, whose verb is in the plural.
        """
        start, count, determined = self.at, None, False
        while self.word() in DETERMINERS or self.word() in NUMBERS or self.word().isdigit():
            word = self.word()
            determined = True
            if word in NUMBERS or word.isdigit():
                count = int(word) if word.isdigit() else NUMBERS[word]
            self.at += 1
        words: list[str] = []
        while not self.ends_phrase(0):
            named = bool(words) and not self.is_attribute(words[-1])
            plural = (count or 1) > 1 or (named and (coordinated or is_plural(words[-1])))
            opening = not words and not determined
            if (named or opening) and self.is_verb(0, plural):
                break
            words.append(self.word())
            self.at += 1
        if not words:
            self.at = start
            return None
        return self._build(words, count)

    def _build(self, words: list[str], count: int | None) -> _Phrase:
        *before, head = words
        attributes, name = [], []
        while before:
            word = before.pop(0)
            if word.endswith("ly") and before:  # "dimly lit" is one attribute
                attributes.append(f"{word} {before.pop(0)}")
            elif not name and self.is_attribute(word):
                attributes.append(word)
            else:
                name.append(word)
        noun = " ".join([*name, head])
        plural = is_plural(noun) if count is None else count > 1
        if self.word() == "of" and self.preposition() == "of":
            self.at += 1
            inner = self.read_phrase()
            if inner is not None:
                tail = " ".join([*inner.attributes, inner.noun])
                if noun in PICTURES:
                    return inner
                return _Phrase(f"{singular(noun)} of {tail}", attributes, count)
        return _Phrase(singular(noun) if plural else noun, attributes, count, plural)

    def read(self) -> None:
        """Read everything; fills `phrases` and `relations`."""
        subjects: list[_Phrase] = []  # what the next verb or "is" speaks of
        verb = ""
        while self.at < len(self.words):
            preposition = self.preposition()
            word = self.word()
            if preposition:
                self.at += len(preposition.split())
                self._relate(subjects, verb, preposition)
            elif word in COPULAS or word in PRONOUNS:
                self.at += 1
                verb = word if word in COPULAS else verb
                self._predicate(subjects)
            elif subjects and self.is_verb(0, plural=True):
                verb = word
                self.at += 1
                self._act(subjects, word)
            elif word in BOUNDARIES:
                if word in ".;":
                    subjects, verb = [], ""
                self.at += 1
            else:
                phrase = self.read_phrase(coordinated=bool(subjects))
                if phrase is None:
                    self.at += 1
                    continue
                subjects = [*subjects, phrase] if not verb else [phrase]
                verb = ""
                self.phrases.append(phrase)

    def _predicate(self, subjects: list[_Phrase]) -> None:
        """`... is red`: attributes after a copula belong to the last subject."""
        while subjects and (self.word() in ATTRIBUTES or _ADJECTIVE.fullmatch(self.word())):
            if not (self.ends_phrase(1) or self.word(1) in ATTRIBUTES):
                return
            subjects[-1].attributes.append(self.word())
            self.at += 1
            if self.word() == "and" and self.word(1) in ATTRIBUTES and self.ends_phrase(2):
                self.at += 1

    def _act(self, subjects: list[_Phrase], verb: str) -> None:
        """`... holding hands`: an action of every subject, with what follows it."""
        preposition = self.preposition()
        start = self.at
        if preposition:
            self.at += len(preposition.split())
        target = self.read_phrase()
        words = " ".join(filter(None, [participle(verb), preposition]))
        if target is None:
            self.at = start
            self.relations += [_action(subject, words) for subject in subjects]
            return
        self.phrases.append(target)
        self.relations += [_relation(subject, words, target) for subject in subjects]

    def _relate(self, subjects: list[_Phrase], verb: str, preposition: str) -> None:
        """`A [is] above B`: with a verb of all subjects, else of the nearest one."""
        if preposition == "without":
            self.read_phrase()
            return
        target = self.read_phrase()
        if target is None:
            return
        self.phrases.append(target)
        if preposition not in JOINING:
            related = subjects if verb else subjects[-1:]
            self.relations += [_relation(subject, preposition, target) for subject in related]


def _named(phrase: _Phrase) -> str:
    """The phrase after "the", in its number."""
    noun = plural_of(phrase.noun) if phrase.plural else phrase.noun
    return " ".join([*phrase.attributes, noun])


def _action(subject: _Phrase, words: str) -> Assertion:
    be = "Are" if subject.plural else "Is"
    return Assertion("relation", f"{be} the {_named(subject)} {words}?", subject.thing, words)


def _relation(subject: _Phrase, relation: str, other: _Phrase) -> Assertion:
    if not subject.plural and not other.plural:
        return relation_assertion(subject.thing, relation, other.thing)
    be = "Are" if subject.plural else "Is"
    question = f"{be} the {_named(subject)} {relation} the {_named(other)}?"
    return Assertion("relation", question, subject.thing, relation, other.thing)


def english_assertions(text: str) -> tuple[Assertion, ...]:
    """The assertions of an English description: objects, attributes, numbers, then relations."""
    chunker = _Chunker(text)
    chunker.read()
    found: list[Assertion] = []
    for phrase in chunker.phrases:
        many = plural_of(phrase.noun)
        if phrase.plural and phrase.count is None:
            found.append(Assertion("object", f"Are there {many}?", Thing(phrase.noun)))
        else:
            found.append(object_assertion(phrase.noun))
        for attribute in phrase.attributes:
            thing = Thing(phrase.noun, (attribute,))
            if phrase.plural:
                question = f"Are the {many} {attribute}?"
                found.append(Assertion("attribute", question, thing))
            else:
                found.append(attribute_assertion(thing))
        if phrase.count is not None:
            number = NUMBER_WORDS.get(phrase.count, str(phrase.count))
            found.append(count_assertion(Thing(phrase.noun), phrase.count, many, number))
    found += chunker.relations
    if not found:
        found = [Assertion("object", f'Does the picture show "{text.strip()}"?')]
    return tuple(dict.fromkeys(found))
