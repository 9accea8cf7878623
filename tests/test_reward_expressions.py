"""The language of reward expressions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from align.rewards.expression import (
    Combination,
    Term,
    format_expression,
    leaves,
    parse_expression,
)

names = st.from_regex(r"[a-z][a-z0-9-]{0,8}", fullmatch=True).filter(lambda n: not n.endswith("py"))
arguments = st.none() | st.sampled_from(["openai/clip-vit-base-patch32", "remove=person", "a:b"])
weights = st.floats(allow_nan=False, allow_infinity=False, width=32).map(float)
terms = st.builds(Term, names, arguments) | st.just(Term("my/file.py", "score"))
combinations = st.recursive(
    st.builds(
        lambda items: Combination("z", tuple(items)),
        st.lists(st.tuples(terms, weights), min_size=1, max_size=3),
    ),
    lambda inner: (
        st.builds(lambda term: Combination("rank", ((term, 1.0),)), terms)
        | st.builds(
            lambda kind, items: Combination(kind, tuple(items)),
            st.sampled_from(["min", "product"]),
            st.lists(st.tuples(terms | inner, weights), min_size=1, max_size=3),
        )
    ),
    max_leaves=4,
)
expressions = st.builds(
    lambda items: Combination("sum", tuple(items)),
    st.lists(st.tuples(terms | combinations, weights), min_size=1, max_size=4),
)


@given(expressions)
def test_reading_back_a_written_expression_gives_the_same_tree(tree):
    assert parse_expression(format_expression(tree)) == tree


@given(st.text(alphabet="ab=:,()1.-/ zmin", max_size=20))
def test_any_text_is_read_or_refused_with_a_value_error(text):
    try:
        tree = parse_expression(text)
    except ValueError as error:
        complaint = str(error)
    else:
        assert leaves(tree)
        return
    assert repr(text) in complaint


def test_weights_arguments_and_functions():
    tree = parse_expression("hps=1, aesthetic=0.1,detector:remove=person,detector:remove=cat=-2")
    assert tree.items == (
        (Term("hps"), 1.0),
        (Term("aesthetic"), 0.1),
        (Term("detector", "remove=person"), 1.0),
        (Term("detector", "remove=cat"), -2.0),
    )
    assert parse_expression("dir/my.py:f=3").items == ((Term("dir/my.py", "f"), 3.0),)
    nested = parse_expression("min(a,product(b,c=2))=0.5,z(a=2)")
    assert [part.kind for part, _ in nested.items] == ["min", "z"]
    assert leaves(nested) == [Term("a"), Term("b"), Term("c")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a reward's name, at the end"),
        ("a,,b", r"expected a reward's name, at character 3 \(',b'\)"),
        ("a=", "a weight is a finite number, got '', at the end"),
        ("a=x", r"a weight is a finite number, got 'x', at character 3"),
        ("a=nan", "finite number"),
        ("min(a", r"the parenthesis of min\( is never closed, at the end"),
        ("a)", r"no opening parenthesis matches this one, at character 2"),
        ("max(a,b)", "only min, product, z, rank take parentheses, not 'max', at character 1"),
        ("min(a)b", r"expected =WEIGHT, a comma or the end after \), at character 7"),
        ("z(min(a,b))", "takes rewards only"),
        ("z(rank(a))", "takes rewards only"),
        ("rank(a,b)", "one reward, without a weight"),
        ("rank(a=2)", "one reward, without a weight"),
        ("rank(min(a,b))", "one reward, without a weight"),
        ("9a", "expected a reward's name"),
        ("a:", "expected an argument after a:"),
        (
            "detector:model=7",
            r"7 may be a weight or the value of 'model'",
        ),
        ("rewards.py", "needs a function: rewards.py:FUNCTION"),
    ],
)
def test_a_malformed_expression_says_where(text, message):
    with pytest.raises(ValueError, match=message):
        parse_expression(text)


def test_a_setting_may_have_a_number_for_its_value():
    """The last number is the weight, and never what a setting of the reward was given."""
    (found,) = parse_expression("detector:remove=cat;model=7=0.5").items
    assert (found[0].argument, found[1]) == ("remove=cat;model=7", 0.5)
    (found,) = parse_expression("vqascore:clip-flant5-xxl=0.5").items
    assert (found[0].argument, found[1]) == ("clip-flant5-xxl", 0.5)
