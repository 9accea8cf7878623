"""A server on this machine that answers as a test says."""

import base64
import io
import json
import pickle
import random
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
from PIL import Image

KEPT = threading.Lock()


class Scripted:
    """What it was asked, and how it answers: `answer(body)` gives (status, body[, headers]), or a
    function that writes to the handler's socket. Numbers are counted from 0."""

    def __init__(self, answer):
        self.answer, self.asked, self.headers = answer, [], []
        self.now = self.most = 0

    def handle(self, handler, body):
        with KEPT:
            self.asked.append(body)
            self.headers.append(dict(handler.headers))
            self.now += 1
            self.most = max(self.most, self.now)
        try:
            answer = self.answer(body)
            if callable(answer):
                answer(handler)
                return
            status, content, *more = answer
            handler.send_response(status)
            for name, value in (more[0] if more else {}).items():
                handler.send_header(name, value)
            if "Content-Length" not in (more[0] if more else {}):
                handler.send_header("Content-Length", str(len(content)))
            handler.end_headers()
            handler.wfile.write(content)
        except OSError:
            pass  # the other side has gone
        finally:
            with KEPT:
                self.now -= 1


@contextmanager
def serving(answer):
    """(the script, its address) of a server; `GET` finds nothing, which says that it is there."""
    script = Scripted(answer)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            script.handle(self, self.rfile.read(int(self.headers["Content-Length"])))
            self.close_connection = True

        def do_GET(self):
            script.gets = getattr(script, "gets", 0) + 1
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments):
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, request, client_address):
            pass

    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield script, f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def brightness_of(png: bytes) -> float:
    """The mean of a PNG's pixels, in [0, 1]."""
    with Image.open(io.BytesIO(png)) as picture:
        assert picture.format == "PNG"
        return float(np.array(picture).mean() / 255)


def honest(body, field="rewards"):
    """Flow-Factory's answer: each picture's brightness."""
    request = json.loads(body)
    assert len(request["prompt"]) == len(request["image"]) == len(request["metadata"])
    scores = [brightness_of(base64.b64decode(image)) for image in request["image"]]
    return 200, json.dumps({field: scores}).encode()


def honest_pickle(body):
    """flow_grpo's answer, in a pickle."""
    scores = [brightness_of(image) for image in pickle.loads(body)["images"]]
    return 200, pickle.dumps({"scores": scores})


def dripping(handler):
    """A byte now and then, without end."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000000")
    handler.end_headers()
    for _ in range(200):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.05)


def unending(handler):
    """More and more, of no length that is said."""
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(b" " * 2**20)


def hanging_up(handler):
    """No answer at all."""
    handler.connection.close()


def hostile(draw: random.Random):
    """An answer that is wrong somehow to a question about three pictures."""
    good = [draw.uniform(-2, 2) for _ in range(3)]
    kind = draw.randrange(9)
    if kind == 0:
        return draw.choice([c for c in range(300, 600) if c != 304]), draw.randbytes(20)
    if kind == 1:
        return 200, draw.randbytes(draw.randrange(200))
    if kind == 2:  # cut short
        text = json.dumps({"rewards": good}).encode()
        return 200, text[: draw.randrange(len(text))]
    if kind == 3:  # one value that is no number
        odd = [None, True, False, "0.5", [0.5], {}, float("nan"), float("inf"), -float("inf"),
               10**400, 1e300, "NaN", [], "1e3"]  # fmt: skip
        good[draw.randrange(3)] = draw.choice(odd)
        return 200, json.dumps({"rewards": good}).encode()
    if kind == 4:  # another number of scores
        return 200, json.dumps({"rewards": good[:2] if draw.random() < 0.5 else good * 2}).encode()
    if kind == 5:  # another form
        forms = [good, {"reward": good}, {"rewards": {"0": 1.0}}, {"rewards": 1.0}, "rewards",
                 {"error": "busy"}, {"rewards": None}, 3, {"rewards": [good]}]  # fmt: skip
        return 200, json.dumps(draw.choice(forms)).encode()
    if kind == 6:
        deep = b"[" * 100_000 if draw.random() < 0.5 else b'{"rewards":' * 50_000
        return 200, deep
    if kind == 7:
        return draw.choice([hanging_up, lambda handler: handler.wfile.write(draw.randbytes(50))])
    length = str(draw.choice([10**9, 400, -1, "x"]))
    return 200, json.dumps({"rewards": good}).encode(), {"Content-Length": length}
