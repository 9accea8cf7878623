"""Runs whose scores come from a server: stopped, resumed, and ended as one in peace."""

import json
import random

import pytest
import torch
from scripted_server import honest, hostile, serving
from tiny import build
from train_helpers import run, small_config, weights

from align.alignprop.train import train
from align.cli import main
from align.rewards import remote, servers
from align.rewards.score_cache import ScorerFailed
from align.training.stopping import Diverged

GROUPS = {"method": "dpo", "batch_size": 8, "group_size": 4, "num_inference_steps": 2}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(remote, "PAUSE", 0.01)
    monkeypatch.delenv(servers.KEY, raising=False)


def test_a_run_under_fire_goes_on_and_ends_as_one_in_peace(tmp_path):
    """Stopped by every hostile answer, resumed each time: the same metrics and weights."""
    draws = random.Random(1)
    settings = GROUPS | {"steps": 3, "checkpoint_every": 1, "learning_rate": 0.01}
    with serving(honest) as (_, place):
        peace, pipe = run(tmp_path / "peace", **settings | {"reward":
                          f"http://{place}/;batch:1;retries:0"})  # fmt: skip
    calls = iter(range(10**6))

    def answer(body):
        return hostile(draws) if next(calls) % 11 == 10 else honest(body)

    with serving(answer) as (_, place):
        reward = f"http://{place}/;batch:1;retries:0;timeout:2;concurrency:1"
        folder, stops, again = tmp_path / "war", [], {}
        while True:
            try:
                war, other = run(folder, **settings | {"reward": reward} | again)
                break
            except (ScorerFailed, Diverged) as error:
                stops.append(str(error))
            again = {"out": None, "resume": str(folder / "run")}
    assert len(stops) >= 3
    assert all("no score: http" in said and "\n" not in said for said in stops)
    different = {"seconds": 0, "terms": 0, "pictures": 0}  # whose names hold the server's port
    for one, two in zip(peace.metrics, war.metrics, strict=True):
        assert one | different == two | different
        assert list(one["terms"].values()) == list(two["terms"].values())
    assert torch.equal(weights(pipe), weights(other))


def test_a_resumed_update_asks_for_what_is_missing_alone(tmp_path):
    """Killed in the middle of the second update; the server says nothing twice."""
    settings = GROUPS | {"steps": 2, "checkpoint_every": 1, "learning_rate": 0.01}
    asked = []

    def answer(body):
        asked.append(body)
        if len(asked) == 8 + 8 + 4:  # the pictures before, an update, four of the next
            return 400, b""
        return honest(body)

    with serving(answer) as (_, place):
        reward = f"http://{place}/;batch:1;concurrency:1;retries:0"
        with pytest.raises(Diverged, match="stopped at step 2: no score"):
            run(tmp_path, **settings | {"reward": reward})
        rows = [json.loads(line) for line in (tmp_path / "run/scores.jsonl").read_text().split("\n")
                if line]  # fmt: skip
        assert [(r["purpose"], r["update"], r["index"]) for r in rows] == [
            *(("pictures", 0, i) for i in range(8)),
            *(("update", 0, i) for i in range(8)),
            *(("update", 1, i) for i in range(3)),
        ]
        file = tmp_path / "run" / "scores.jsonl"
        file.write_bytes(file.read_bytes() + b'{"purpose": "update", "upd')  # cut short
        asked.clear()
        again = {"out": None, "resume": str(tmp_path / "run")}
        run(tmp_path, **settings | {"reward": reward} | again)
        assert len(asked) == 5 + 8  # the rest of the update, the pictures after
        run_again = [line for line in file.read_text().splitlines() if line[-4:] == '"upd']
        assert len(run_again) == 1  # nothing was written to its end


@pytest.mark.parametrize("method", ["dpo", "nft"])
def test_a_group_without_a_score_is_dropped(tmp_path, method):
    """One of 40 images fails: its group of four has no effect, and is counted."""
    calls = iter(range(10**6))

    def answer(body):
        return (500, b"") if next(calls) == 8 + 5 else honest(body)

    with serving(answer) as (_, place):
        reward = f"http://{place}/;batch:1;concurrency:1;retries:0;failure=skip"
        settings = GROUPS | {"method": method, "batch_size": 40, "steps": 1, "reward": reward}
        if method == "nft":
            settings["advantage"] = "group"
        result, _ = run(tmp_path, **settings)
    (record,) = result.metrics
    if method == "dpo":
        assert record["dropped"] == pytest.approx(0.1)
    assert 0 < record["reward"] < 1
    assert record["grad_norm"] > 0
    assert "NaN" not in (tmp_path / "run" / "metrics.jsonl").read_text()


def test_too_many_failures_stop(tmp_path):
    calls = iter(range(10**6))

    def answer(body):
        return (500, b"") if next(calls) in (8 + 5, 8 + 30, 8 + 35) else honest(body)

    with serving(answer) as (_, place):
        reward = f"http://{place}/;batch:1;concurrency:1;retries:0;failure=skip"
        settings = GROUPS | {"batch_size": 40, "micro_batch_size": 20, "reward": reward}
        with pytest.raises(Diverged, match="3 of 40 images of update 1 have no score, more than 5"):
            run(tmp_path, **settings)
        settings |= {"judge": reward, "judge_prompts": "animals", "reward": "jpeg"}
        with pytest.raises(ValueError, match="may skip scores"):
            train(small_config(tmp_path, overwrite=True, **settings), pipe=build("sd"))


def test_the_command_line_says_it_in_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with serving(lambda body: (400, b"")) as (_, place):
        line = ["generate", "a red circle", "--num-inference-steps", "1", "--reward"]
        assert main([*line, f"http://{place}/"]) == 1
    said = capsys.readouterr().err.strip().splitlines()
    assert said[-1] == f"align: no score: http://{place}/ answered with status 400"
    assert "Traceback" not in "".join(said)


def likely_yes(body):
    listed = [{"token": "Yes", "logprob": -0.7}, {"token": "No", "logprob": -1.4}]
    choice = {"logprobs": {"content": [{"token": "Yes", "top_logprobs": listed}]}}
    return 200, json.dumps({"choices": [choice]}).encode()


def test_the_key_is_sent_and_written_nowhere(tmp_path, monkeypatch):
    key = "sk-very-secret"
    monkeypatch.setenv(servers.KEY, key)
    calls = iter(range(100))

    def answer(body):
        if next(calls) > 20:
            return 403, f"the key {key} is not admitted".encode()
        return likely_yes(body)

    with serving(answer) as (script, place):
        reward = f"chat:http://{place}/v1;model=m;retries:0"
        settings = {"method": "dpo", "batch_size": 8, "group_size": 4, "reward": reward}
        with pytest.raises(ArithmeticError) as caught:
            run(tmp_path, num_inference_steps=2, steps=3, **settings)
        assert all(headers["Authorization"] == f"Bearer {key}" for headers in script.headers)
    assert key not in str(caught.value)
    for file in (tmp_path / "run").rglob("*"):
        assert file.is_dir() or key.encode() not in file.read_bytes(), file
