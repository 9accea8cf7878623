"""Scores from a server: how it is asked, and what counts as a failure, which is never a number.

Connection errors, 408, 429 and 5xx are asked again after 1, 2, 4 and 8 s or what the server says;
every other status ends the question. An answer that is too large, too late, of the wrong length or
no finite number is a failure. With `failure=stop` it raises; with `failure=skip` the score is NaN,
and the training drops the image's whole group.
"""

import hashlib
import json
import logging
import math
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from io import BytesIO
from typing import Any

import httpx
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from align.rewards.score_cache import Asked, ScoreCache, ScorerFailed
from align.rewards.servers import Policy, check_address, is_loopback, positive

log = logging.getLogger(__name__)
LARGEST = 16 * 2**20  # bytes of an answer
LARGEST_NUMBER = torch.finfo(torch.float32).max
PAUSE = 1.0  # seconds before the second try; each further pause is twice as long
AGAIN = (408, 429)


@dataclass(frozen=True)
class Question:
    """An image to score."""

    pixels: UInt8[Tensor, "3 h w"]
    prompt: str
    metadata: Any

    def png(self) -> bytes:
        """The image as a PNG file."""
        file = BytesIO()
        array = self.pixels.permute(1, 2, 0).numpy()
        Image.fromarray(array).save(file, "PNG", compress_level=1)
        return file.getvalue()


class Server:
    """An address, asked by the policy. The key, if one is given, is in no error."""

    def __init__(self, term: str, address: str, policy: Policy, key: str | None = None):
        self.term, self.policy = term, policy
        self.url = check_address(term, address, bool(key))
        self.headers = {"Accept-Encoding": "identity", "User-Agent": "align"}
        if key:
            self.headers["Authorization"] = f"Bearer {key}"
        self.over = threading.Event()
        # Made once: reading the certificates takes longer than many an answer.
        self.tls = httpx.create_ssl_context() if self.url.scheme == "https" else False

    def client(self) -> httpx.Client:
        """A client for one round of questions."""
        self.over.clear()
        return httpx.Client(
            headers=self.headers,
            timeout=self.policy.timeout,
            limits=httpx.Limits(max_connections=self.policy.concurrency),
            follow_redirects=False,
            verify=self.tls,
            trust_env=not is_loopback(self.url.host),
        )

    def ask(
        self,
        client: httpx.Client,
        method: str,
        url: httpx.URL,
        content: bytes = b"",
        kind: str = "",
        *,
        fine: Callable[[int], bool] = lambda status: 200 <= status < 300,
    ) -> bytes:
        """The body of an answer of a status that is `fine`. Raises ScorerFailed."""
        reason, pause = "did not answer", PAUSE
        for attempt in range(self.policy.retries + 1):
            if attempt and self.over.wait(pause * (1 + random.random() / 4)):
                break
            pause = PAUSE * 2**attempt
            try:
                status, body, after = self._once(client, method, url, content, kind)
            except (httpx.HTTPError, httpx.StreamError, OSError, RuntimeError, ValueError) as error:
                if isinstance(error, ScorerFailed):
                    raise
                reason = f"could not be asked ({type(error).__name__})"
                continue
            if fine(status):
                return body
            reason = f"answered with status {status}"
            if status not in AGAIN and status < 500:
                raise self.failed(reason)
            pause = max(pause, after)
        raise self.failed(f"{reason}, {self.policy.retries + 1} tries")

    def _once(
        self, client: httpx.Client, method: str, url: httpx.URL, content: bytes, kind: str
    ) -> tuple[int, bytes, float]:
        """(status, body, seconds to wait before asking again) of one request."""
        end, parts, size = time.monotonic() + self.policy.timeout, [], 0
        headers = {"Content-Type": kind} if kind else {}
        with client.stream(method, url, content=content or None, headers=headers) as response:
            after = _seconds(response.headers.get("Retry-After"), self.policy.timeout)
            if not 200 <= response.status_code < 300:
                return response.status_code, b"", after
            if response.headers.get("Content-Encoding", "identity") != "identity":
                raise self.failed("answered in an encoding that was not asked for")
            if (positive(response.headers.get("Content-Length", "")) or 0) > LARGEST:
                raise self.too_much()
            for part in response.iter_raw():
                size += len(part)
                if size > LARGEST:
                    raise self.too_much()
                if time.monotonic() > end:
                    raise httpx.ReadTimeout("the answer takes too long")
                parts.append(part)
            return response.status_code, b"".join(parts), after

    def too_much(self) -> ScorerFailed:
        """The error that says that an answer is too large."""
        return self.failed(f"answered with more than {LARGEST // 2**20} MB")

    def failed(self, reason: str) -> ScorerFailed:
        """The error that says why there is no score."""
        shown = self.url.copy_with(query=None)
        return ScorerFailed(f"no score: {shown} {reason}")

    def check(self, url: httpx.URL) -> None:
        """Raise ScorerFailed where nothing answers there, or it does not admit us."""
        with self.client() as client:
            self.ask(
                client,
                "GET",
                url,
                fine=lambda status: status < 500 and status not in (401, 403, *AGAIN),
            )


class Remote:
    """A reward whose scores come from a server.

    `send(client, questions)` asks about `batch` images in one request and returns a score for each.
    `question` is what is asked beside the image, for the cache.
    """

    differentiable = False
    wants_metadata = True

    def __init__(
        self,
        server: Server,
        send: Callable[[httpx.Client, list[Question]], list[float]],
        question: Sequence[Any],
        batch: int = 1,
    ):
        self.server, self.send, self.question, self.batch = server, send, question, batch
        self.skips = server.policy.failure == "skip"
        self.cache = ScoreCache(server.term)

    @torch.no_grad()
    def __call__(
        self, images: Float[Tensor, "b 3 h w"], prompts: list[str], metadata: Any = None
    ) -> Float[Tensor, " b"]:
        """The scores, NaN where the server failed and may. Raises ScorerFailed."""
        pixels = (255 * images.float().clamp(0, 1)).round().to(torch.uint8).cpu()
        facts = [{}] * len(prompts) if metadata is None else metadata
        questions = [Question(*one) for one in zip(pixels, prompts, facts, strict=True)]
        asked = [self._asked(one) for one in questions]
        found = [self.cache.find(row, one) for row, one in enumerate(asked)]
        open_rows: dict[Asked, list[int]] = {}  # equal images are asked about once
        for row, one in enumerate(asked):
            if found[row] is None:
                open_rows.setdefault(one, []).append(row)
        waiting = list(open_rows.values())
        pieces = [waiting[at : at + self.batch] for at in range(0, len(waiting), self.batch)]
        for piece, scores in self._answers(questions, pieces):
            for alike, score in zip(piece, scores, strict=True):
                for row in alike:
                    found[row] = score
                    self.cache.keep(row, asked[row], score)
        numbers = [math.nan if score is None else score for score in found]
        return torch.tensor(numbers, dtype=images.dtype, device=images.device)

    def _asked(self, one: Question) -> Asked:
        words = [self.question, one.prompt, one.metadata]
        text = json.dumps(words, sort_keys=True, default=str)
        shape = str(list(one.pixels.shape)).encode()
        picture = hashlib.sha256(shape + one.pixels.numpy().tobytes())
        return Asked(hashlib.sha256(text.encode()).hexdigest(), picture.hexdigest())

    def _answers(self, questions: list[Question], pieces: list[list[list[int]]]):
        """Each piece with its scores, as they come; pieces that failed are left out."""
        if not pieces:
            return
        policy, server = self.server.policy, self.server
        pool = ThreadPoolExecutor(min(policy.concurrency, len(pieces)))
        # A server that sends a byte now and then would be waited for without end.
        tries, rounds = policy.retries + 1, -(-len(pieces) // policy.concurrency)
        longest = 2 * rounds * tries * (policy.timeout + 2 * PAUSE * 2**policy.retries)
        with server.client() as client:
            watch = threading.Timer(longest, lambda: (server.over.set(), client.close()))
            watch.daemon = True
            watch.start()
            try:
                futures = {
                    pool.submit(self._send, client, [questions[alike[0]] for alike in piece]): piece
                    for piece in pieces
                }
                for future in as_completed(futures):
                    try:
                        scores = future.result()
                    except ScorerFailed as error:
                        if not self.skips:
                            raise
                        log.warning("warning: %s", error)
                        continue
                    yield futures[future], scores
            finally:
                watch.cancel()
                server.over.set()
                pool.shutdown(wait=False, cancel_futures=True)

    def _send(self, client: httpx.Client, questions: list[Question]) -> list[float]:
        scores = self.send(client, questions)
        if len(scores) != len(questions):
            raise self.server.failed(f"answered {len(scores)} scores for {len(questions)} images")
        return scores


def number(value: Any) -> float | None:
    """A finite number, or None for everything else: texts, truth values, NaN, numbers too large."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        value = float(value)
    except OverflowError:
        return None
    return value if abs(value) <= LARGEST_NUMBER else None


def read_json(body: bytes) -> Any:
    """The JSON of a text. Raises ValueError for anything else."""
    try:
        return json.loads(body)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _seconds(text: str | None, most: float) -> float:
    """What a server asks to wait, in seconds or until a date, if it can be read; at most `most`."""
    value = positive(text or "")
    if value is None:
        try:
            value = parsedate_to_datetime(text or "").timestamp() - time.time()
        except (ValueError, OverflowError):
            return 0.0
    return min(max(value, 0.0), most)
