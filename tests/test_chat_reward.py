"""`chat:` against a server on this machine."""

import base64
import json
import math

import pytest
import torch
from scripted_server import brightness_of, serving

from align.rewards import load_reward, remote, servers
from align.rewards.score_cache import ScorerFailed

PROMPT = "a red circle"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(remote, "PAUSE", 0.01)
    monkeypatch.delenv(servers.KEY, raising=False)


@pytest.fixture
def images():
    return torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def tokens(**probabilities):
    """An answer whose first token has these probabilities."""
    names = {"blank_yes": " Yes", "lower_no": "no"}
    listed = [
        {"token": names.get(name, name), "logprob": math.log(p)}
        for name, p in probabilities.items()
    ]
    choice = {"logprobs": {"content": [{"token": "Yes", "top_logprobs": listed}]}}
    return lambda body: (200, json.dumps({"choices": [choice]}).encode())


def text(said):
    choice = {"message": {"role": "assistant", "content": said}}
    return lambda body: (200, json.dumps({"choices": [choice]}).encode())


def test_shares_and_probabilities(images, tmp_path):
    listed = {"Yes": 0.5, "blank_yes": 0.1, "No": 0.2, "lower_no": 0.05, "Maybe": 0.1}
    (tmp_path / "ask.txt").write_text("Is this {prompt}? {x}\n")
    with serving(tokens(**listed)) as (script, place):
        server = f"chat:http://{place}/v1;model=Qwen/Some-7B:latest"
        scores = load_reward(server)(images, [PROMPT] * 2)
        torch.testing.assert_close(scores, torch.full((2,), 0.6 / 0.85))
        scores = load_reward(f"{server};score=p;ask=@{tmp_path / 'ask.txt'}=2")(images, ["x"] * 2)
        torch.testing.assert_close(scores, torch.full((2,), 1.0))
        requests = [json.loads(body) for body in script.asked]
    assert {r["model"] for r in requests} == {"Qwen/Some-7B:latest"}
    for request in requests:
        assert (request["temperature"], request["top_p"], request["max_tokens"]) == (0, 1, 1)
        assert (request["logprobs"], request["top_logprobs"]) == (True, 20)
        picture, _ = request["messages"][0]["content"]
        png = base64.b64decode(picture["image_url"]["url"].removeprefix("data:image/png;base64,"))
        assert brightness_of(png) in [
            pytest.approx(float((255 * one).round().mean() / 255)) for one in images
        ]
    said = {r["messages"][0]["content"][1]["text"] for r in requests}
    assert said == {
        f'Does this image show "{PROMPT}"? Answer the question with Yes or No.',
        "Is this x? {x}",
    }


@pytest.mark.parametrize(
    ("rule", "said", "score"),
    [
        ("json:overall", 'It is fine.\n```json\n{"note": {}, "overall": 3.5}\n```', 3.5),
        ("json:overall", '{"overall": "4"}', 4.0),
        ("json:overall", '{"other": {"overall": 2}}', 2.0),
        ("regex:@{}", "First: 2. Final Score: 4.25 of 5", 4.25),
        ("regex:@{}", "Final Score: -1", -1.0),
    ],
)
def test_numbers_in_texts(images, tmp_path, rule, said, score):
    pattern = tmp_path / "pattern.txt"
    pattern.write_text(r"Final Score:\s*(-?[\d.]+)")
    with serving(text(said)) as (script, place):
        reward = load_reward(f"chat:http://{place}/v1;model=m;score={rule.format(pattern)}")
        assert reward(images[:1], ["a"]).tolist() == [score]
        assert json.loads(script.asked[0])["max_tokens"] == 512


@pytest.mark.parametrize(
    ("rule", "answer", "count"),
    [
        ("share", tokens(Maybe=0.9), 1),
        ("share", text("Yes"), 1),
        ("share", tokens(Yes=2.0, No=0.5), 1),  # no probability
        ("p", tokens(yes=0.9), 1),
        ("json:overall", text("I cannot say"), 2),
        ("json:overall", text('{"overall": NaN}'), 2),
        ("json:overall", text('{"overall": true}'), 2),
        ("json:overall", text("{" * 50_000), 2),
        ("json:overall", text(None), 2),
        ("json:overall", lambda b: (200, b'{"choices": []}'), 1),
        ("json:overall", lambda b: (200, b'{"choices": ' + b"[" * 100_000), 1),
        ("json:overall", lambda b: (200, b"<html>"), 1),
    ],
)
def test_what_cannot_be_read_is_no_number(images, rule, answer, count):
    with serving(answer) as (script, place):
        reward = load_reward(f"chat:http://{place}/v1;model=m;retries:0;score={rule}")
        with pytest.raises(ScorerFailed, match="no score: http") as caught:
            reward(images[:1], ["a"])
        assert len(script.asked) == count  # a text is asked for once more
        seeds = [json.loads(body)["seed"] for body in script.asked]
        assert seeds == list(range(count))
    assert "\n" not in str(caught.value)


def test_where_pictures_go_is_said_once(monkeypatch, caplog):
    monkeypatch.setattr(remote.Server, "check", lambda self, url: None)  # no network here
    monkeypatch.setattr(servers, "_SAID", set())
    for _ in range(2):
        load_reward("https://scores.example.com/v1")
        load_reward("http://127.0.0.1:9/")
        load_reward("http://[::1]:9/")
    warned = [record.getMessage() for record in caplog.records]
    assert warned == ["warning: pictures and prompts leave this machine, to scores.example.com"]


def test_a_key_does_not_go_out_in_the_clear(monkeypatch):
    monkeypatch.setenv(servers.KEY, "sk-very-secret")
    with pytest.raises(ValueError, match="unencrypted; use https") as caught:
        load_reward("chat:http://example.com/v1;model=m")
    assert "sk-very" not in str(caught.value)
