"""`http:`, `https:` and `chat:`: a server's scores, or a failure, never a number in its place."""

import pickle
import random
import time

import pytest
import torch
from scripted_server import dripping, hanging_up, honest, honest_pickle, hostile, serving, unending

from align.rewards import load_reward, remote, servers
from align.rewards.expression import parse_expression
from align.rewards.http_scorer import read_pickle
from align.rewards.identity import shared
from align.rewards.score_cache import ScorerFailed, placed


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(remote, "PAUSE", 0.01)
    monkeypatch.delenv(servers.KEY, raising=False)


@pytest.fixture
def images():
    return torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))


PROMPTS = ["a", "b", "c"]


def means(images):
    return (255 * images).round().div(255).flatten(1).mean(1)


@pytest.mark.parametrize(
    ("answer", "settings"),
    [(honest, ""), (honest, ";batch:1"), (lambda b: honest(b, "s"), ";field=s"),
     (honest_pickle, ";format=pickle")],
)  # fmt: skip
def test_scores_of_a_server(images, answer, settings):
    with serving(answer) as (script, place):
        reward = load_reward(f"http://{place}/score{settings}=0.5")
        assert script.gets == 1  # before anything else is loaded
        assert not reward.differentiable
        scores = reward(images, PROMPTS, [{"tag": one} for one in "xyz"])
        torch.testing.assert_close(scores, 0.5 * means(images), atol=1e-6, rtol=0)
        asked = len(script.asked)
        assert asked == (3 if "batch:1" in settings else 1)
        reward(images, PROMPTS, [{"tag": one} for one in "xyz"])
        assert len(script.asked) == asked  # known
        reward(images[:1], ["another"], [{"tag": "x"}])
        assert len(script.asked) == asked + 1


def test_tried_again(images):
    failures = [(500, b""), (429, b"", {"Retry-After": "0.2"}), hanging_up]

    def answer(body):
        return failures.pop(0) if failures else honest(body)

    with serving(answer) as (script, place):
        started = time.monotonic()
        scores = load_reward(f"http://{place}/")(images, PROMPTS)
        assert time.monotonic() - started > 0.2
        assert len(script.asked) == 4
    torch.testing.assert_close(scores, means(images), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("answer", "tries", "message"),
    [
        (lambda b: (400, b"{}"), 1, "status 400"),
        (lambda b: (302, b"", {"Location": "http://127.0.0.1:9/"}), 1, "status 302"),
        (lambda b: (503, b"<html>"), 3, "status 503, 3 tries"),
        (lambda b: hanging_up, 3, "could not be asked .*3 tries"),
        (lambda b: (200, b'{"rewards": [1.0]}'), 1, "1 scores for 3 images"),
        (lambda b: (200, b'{"rewards": [1.0, NaN, 2.0]}'), 1, "no finite number"),
        (lambda b: (200, b"<html>busy</html>"), 1, "no json"),
        (lambda b: (200, b" " * (2**24 + 1)), 1, "more than 16 MB"),
        (lambda b: (200, b" ", {"Content-Length": str(2**40)}), 1, "more than 16 MB"),
        (lambda b: unending, 1, "more than 16 MB"),
        (lambda b: (200, b"x", {"Content-Encoding": "gzip"}), 1, "encoding"),
        (lambda b: dripping, 3, "ReadTimeout.*3 tries"),
    ],
)  # fmt: skip
def test_failures(images, answer, tries, message):
    with serving(answer) as (script, place):
        seconds = 0.3 if answer(b"") is dripping else 30
        reward = load_reward(f"http://{place}/score?token=secret;retries:2;timeout:{seconds}")
        with pytest.raises(ScorerFailed, match=message) as caught:
            reward(images, PROMPTS)
        assert len(script.asked) == tries
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)
    skipped = f"http://{place}/;failure=skip"
    with pytest.raises(ScorerFailed, match="5 tries"):  # the server has gone
        load_reward(skipped)


def test_a_failure_that_may_be_skipped_is_no_number(images):
    answers = iter([honest, lambda body: (500, b""), honest])
    with serving(lambda body: next(answers)(body)) as (_, place):
        reward = load_reward(f"http://{place}/;failure=skip;batch:1;concurrency:1;retries:0")
        scores = reward(images, PROMPTS)
    assert scores.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize(
    "value",
    [torch.zeros(1), random.Random(0), print, {1, 2}, 1j, bytearray(3), Exception("x")],
    ids=lambda value: type(value).__name__,
)
def test_pickles_with_more_than_plain_values_are_refused(value):
    for protocol in range(6):
        with pytest.raises(ValueError, match="no pickle of plain values"):
            read_pickle(pickle.dumps({"scores": [1.0], "more": value}, protocol))


def test_plain_pickles():
    plain = {"scores": [1.5, -2, 10**30, True, None, "é", b"x"], "more": ({"a": []},)}
    for protocol in range(6):
        if protocol > 2:  # before, bytes are pickled as a call
            assert read_pickle(pickle.dumps(plain, protocol)) == plain
    with pytest.raises(ValueError, match="no pickle"):
        read_pickle(b"\x80\x04]r\xff\xff\xff\x7f.")  # a memo of 16 GB


def test_two_hundred_hostile_answers(images):
    """Each one sentence, no number."""
    draws = random.Random(0)
    answers = [hostile(draws) for _ in range(200)]
    with serving(lambda body: answers.pop(0)) as (script, place):
        reward = load_reward(f"http://{place}/;retries:0;timeout:2")
        skipping = load_reward(f"http://{place}/;retries:0;timeout:2;failure=skip")
        for number in range(200):
            if number % 2:
                assert skipping(images, PROMPTS).isnan().all()
                continue
            with pytest.raises(ScorerFailed) as caught:
                reward(images, PROMPTS)
            assert str(caught.value).startswith("no score: http://127.0.0.1")
            assert "\n" not in str(caught.value)
            assert len(str(caught.value)) < 200
        assert len(script.asked) == 200


def test_scores_by_place_come_before_the_server(tmp_path, images):
    with serving(honest) as (script, place):
        expression = f"rank(http://{place}/),http://{place}/"
        rows = ["a"] * 3
        with placed(tmp_path, "update", 4, [10, 11, 12]):
            first = load_reward(expression, micro_batch_size=2)(images, rows)
        count = len(script.asked)
        # a resumed update whose pixels differ by a rounding
        with placed(tmp_path, "update", 4, [10, 11, 12]):
            second = load_reward(expression, micro_batch_size=2)((images - 1 / 255).clamp(0), rows)
        assert torch.equal(first, second)
        assert len(script.asked) == count
        with placed(tmp_path, "update", 5, [10, 11, 12]):
            load_reward(expression)((images - 1 / 255).clamp(0), rows)
        assert len(script.asked) > count


def test_many_at_once_within_the_limit():
    images = torch.rand(64, 3, 8, 8)

    def answer(body):
        time.sleep(0.02)
        return honest(body)

    with serving(answer) as (script, place):
        reward = load_reward(f"http://{place}/;batch:1;concurrency:7")
        torch.testing.assert_close(reward(images, ["a"] * 64), means(images), atol=1e-6, rtol=0)
        assert 3 <= script.most <= 7
        assert len(script.asked) == 64


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("http", "names no server"),
        ("https:nothing", "an address is http"),
        ("http://user:word@127.0.0.1/", "no user and password"),
        ("http://127.0.0.1:1/;format=xml", "format is 'xml'"),
        ("http://127.0.0.1:1/;failure=zero", "failure is 'zero'"),
        ("http://127.0.0.1:1/;timeout=3=1", "cannot be read at 'timeout=3'"),
        ("http://127.0.0.1:1/;concurrency:0", "concurrency must be from 1"),
        ("http://127.0.0.1:1/;batch:0", "batch must be at least 1"),
        ("chat:http://127.0.0.1:1/v1", "names no model"),
        ("chat:http://127.0.0.1:1/v1;model=m;score=most", "it must be share"),
        ("chat:http://127.0.0.1:1/v1;model=m;ask=why?", "write @FILE"),
    ],
)
def test_arguments_that_cannot_be_read(expression, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_reward(expression)
    assert "\n" not in str(caught.value)
    assert "word@" not in str(caught.value)


def test_a_number_that_ends_a_query_is_no_weight():
    with pytest.raises(ValueError, match="a weight or the value of 'version'"):
        parse_expression("http://host/score?version=2")
    ((term, weight),) = parse_expression("http://host/score?version=2=0.5").items
    assert (term.key, weight) == ("http://host/score?version=2", 0.5)
    ((term, weight),) = parse_expression("http://host:8000/score=0.5").items
    assert (term.key, weight) == ("http://host:8000/score", 0.5)


def test_who_asks_one_server_is_not_held_out():
    trained = ["http://a:1/score;batch:4", "chat:https://b/v1;model=m"]
    assert shared(["https://a:1/score", "http://a:2/score", "jpeg"], trained) == [
        "https://a:1/score"
    ]
    assert shared(["chat:https://b/v1;model=m;score=p"], trained) == [
        "chat:https://b/v1;model=m;score=p"
    ]
