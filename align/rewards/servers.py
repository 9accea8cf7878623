"""What the terms of servers say: addresses, settings, and the policy by which a server is asked."""

import ipaddress
import logging
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

log = logging.getLogger(__name__)
KEY = "ALIGN_API_KEY"
_SAID: set[str] = set()


@dataclass(frozen=True)
class Policy:
    """How patiently a server is asked."""

    concurrency: int = 16
    timeout: float = 120.0
    """Seconds that an answer may take."""
    retries: int = 4
    failure: str = "stop"


def read_argument(
    term: str, argument: str | None, words: Sequence[str], numbers: Sequence[str], form: str
) -> tuple[str, dict[str, str], dict[str, float]]:
    """The address of an argument `ADDRESS;key=word;key:NUMBER`, its words and its numbers.

    Raises ValueError, quoting `form`, for what cannot be read.
    """
    address, *parts = (part.strip() for part in (argument or "").split(";"))
    said: dict[str, str] = {}
    counts: dict[str, float] = {}
    for part in parts:
        word, _, value = part.partition("=")
        count, _, amount = part.partition(":")
        if word in words and value:
            said[word] = value
        elif count in numbers and (seconds := positive(amount)) is not None:
            counts[count] = seconds
        else:
            raise ValueError(f"{term} cannot be read at {part!r}; the form is {form}")
    if not address:
        raise ValueError(f"{term} names no server; the form is {form}")
    return address, said, counts


def policy_of(term: str, words: dict[str, str], numbers: dict[str, float]) -> Policy:
    """The policy among an argument's settings. Raises ValueError for one that is none."""
    failure = words.get("failure", "stop")
    if failure not in ("stop", "skip"):
        raise ValueError(f"{term}: failure is {failure!r}; it must be stop or skip")
    counts: dict[str, Any] = {
        key: int(numbers[key]) for key in ("concurrency", "retries") if key in numbers
    }
    if counts.get("concurrency", 1) < 1 or counts.get("concurrency", 1) > 256:
        raise ValueError(f"{term}: concurrency must be from 1 to 256")
    if counts.get("retries", 0) > 10:
        raise ValueError(f"{term}: retries must be at most 10")
    if not 0 < numbers.get("timeout", 1) <= 86_400:
        raise ValueError(f"{term}: timeout must be more than 0 seconds, and at most a day")
    if "timeout" in numbers:
        counts["timeout"] = numbers["timeout"]
    return Policy(**counts, failure=failure)


def file_text(term: str, value: str) -> str:
    """The text of a file that a setting names as @FILE.

    Raises ValueError where it is written otherwise, FileNotFoundError where there is none.
    """
    if not value.startswith("@"):
        raise ValueError(f"{term}: longer texts are files; write @FILE, not {value!r}")
    path = Path(value[1:]).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"{term}: there is no file {path}")
    try:
        return path.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError:
        raise ValueError(f"{term}: {path} is no text in UTF-8") from None


def own_key() -> str | None:
    """The key for servers, from the environment."""
    return os.environ.get(KEY) or None


def check_address(term: str, address: str, with_key: bool) -> httpx.URL:
    """The address, if pictures may go there; says once where they leave the machine.

    Raises ValueError for what is no address, holds a password, or would send a key in the clear.
    """
    try:
        url = httpx.URL(address)
    except (httpx.InvalidURL, ValueError) as error:
        raise ValueError(f"{term}: {address!r} is no address ({error})") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError(f"{term}: an address is http://HOST/... or https://HOST/...")
    if url.userinfo:
        raise ValueError(f"{term.split('@')[-1]}: no user and password in an address; set {KEY}")
    if with_key and url.scheme == "http" and not is_near(url.host):
        raise ValueError(f"{term}: {KEY} is set and would go to {url.host} unencrypted; use https")
    if not is_loopback(url.host) and url.host not in _SAID:
        _SAID.add(url.host)
        log.warning("warning: pictures and prompts leave this machine, to %s", url.host)
    return url


def is_loopback(host: str) -> bool:
    """Whether a host is this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_near(host: str) -> bool:
    """Whether a host is of a private network: its address is, or its name has no domain."""
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        return "." not in host or host.endswith((".local", ".internal", ".lan"))


def positive(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None
