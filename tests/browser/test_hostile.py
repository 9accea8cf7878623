"""Hostile requests to the running demo; `scripts/bench/demo_hostile.py` sends more of them."""

import importlib.util
import json
import random
import urllib.request
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench" / "demo_hostile.py"


def hostile():
    spec = importlib.util.spec_from_file_location("demo_hostile", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_hostile_requests_get_a_sentence_and_leave_the_server_alive(server):
    script, address = hostile(), server[0].rstrip("/")
    known = endpoints(address)
    for first in (0, 8 * 7, 9 * 7):  # wrong values, files, broken bodies
        for number in range(first, first + 14):
            name = list(known)[number % len(known)]
            parameters = known[name]["parameters"]
            chance = random.Random(number)
            _, text = script.request(address, name, parameters, number, chance)
            assert "Traceback" not in text
            assert "root:" not in text
            assert "no answer" not in text
    assert "complete" in script.call(address, "/generate", script.good_values(address))
    assert "Traceback" not in server[1].read_text()


def endpoints(address):
    with urllib.request.urlopen(f"{address}/gradio_api/info") as answer:
        return json.loads(answer.read())["named_endpoints"]


def test_a_file_reference_or_too_few_values_are_refused_at_the_door(server):
    script, address = hostile(), server[0].rstrip("/")
    mark = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
    for data, text in (([mark] * 12, "not taken by reference"), ([], "are needed")):
        status, answer = script.fetch(
            f"{address}/gradio_api/call/generate", json.dumps({"data": data}).encode()
        )
        assert (status, text in answer) == (422, True)
    status, answer = script.fetch(
        f"{address}/gradio_api/call/nar", b'{"data": ["' + b"A" * 17_000_000 + b'"]}'
    )
    assert status in (0, 422)  # refused before all of it was sent
    assert "root:" not in answer
