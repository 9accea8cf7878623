"""What reaches the page's server at all: requests of a sane size and form.

The handlers check every value. This stands before them, where the framework would act on a request
or fail on its form: bodies that are too large, file references (no endpoint takes one), and calls
with too few values.
"""

import json
from typing import Any

MAX_BODY = 16_000_000  # bytes; a picture of 10 MB as base64 fits
FILE_MARK = "gradio.FileData"
CALLS = ("/queue/join", "/run/", "/call/", "/api/")


class Guard:
    """ASGI middleware; `page` is the gr.Blocks that is served."""

    def __init__(self, app: Any, page: Any):
        self.app, self.page = app, page

    async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
        path = scope.get("path", "")
        called = scope["type"] == "http" and scope.get("method") == "POST"
        if not called or not any(part in path for part in CALLS):
            await self.app(scope, receive, send)
            return
        body, problem = await _read(receive)
        problem = problem or self._problem(path, body)
        if problem:
            await _refuse(send, problem)
            return
        sent = False

        async def replay() -> dict:
            nonlocal sent
            if sent:
                return await receive()
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, replay, send)

    def _problem(self, path: str, body: bytes) -> str:
        """What is wrong with a call, in one sentence; empty where nothing is."""
        try:
            call = json.loads(body)
        except (ValueError, RecursionError):
            return "The request is no JSON."
        if not isinstance(call, dict) or not isinstance(call.get("data"), list):
            return "The request has no list `data`."
        try:
            if FILE_MARK in json.dumps(call, ensure_ascii=False):
                return "Files are not taken by reference; a picture is sent as a data: address."
        except (ValueError, RecursionError):
            return "The request is nested too deeply."
        needed = self._needed(path, call.get("fn_index"))
        if needed is not None and len(call["data"]) < needed:
            return f"The request has {len(call['data'])} values; {needed} are needed."
        return ""

    def _needed(self, path: str, index: Any) -> int | None:
        """How many values the function takes that is called; None where it is not known."""
        name = path.rstrip("/").rpartition("/")[2]
        for number, function in self.page.fns.items():
            if "/queue/join" in path and number == index and type(index) is int:
                return len(function.inputs)
            if "/queue/join" not in path and function.api_name == name:
                return sum(not one.stateful for one in function.inputs)
        return None


async def _read(receive: Any) -> tuple[bytes, str]:
    """(the body, what is wrong with it)."""
    parts, size = [], 0
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > MAX_BODY:
            return b"", f"The request has more than {MAX_BODY // 1_000_000} MB."
        if not message.get("more_body"):
            return b"".join(parts), ""


async def _refuse(send: Any, problem: str) -> None:
    content = json.dumps({"error": problem, "detail": problem}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(content))]
    await send({"type": "http.response.start", "status": 422, "headers": headers})
    await send({"type": "http.response.body", "body": content})
