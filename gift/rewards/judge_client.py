"""The line to a judge: requests to an OpenAI-compatible endpoint, in parallel, with retries; answers kept on disk."""

import hashlib
import ipaddress
import json
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from gift.project.errors import UserError
from gift.project.sections import Count, Positive, Section

CACHE = Path("data/.cache/judge")
ENDPOINT = "GIFT_JUDGE_ENDPOINT"
KEY = "GIFT_JUDGE_API_KEY"
FIRST_WAIT, LONGEST_WAIT = 0.5, 60.0  # seconds before a retry, doubled each time; or what the server asks for
CONNECT_SECONDS = 10.0
MOST_BYTES = 2**24  # of a reply
TRY_AGAIN = frozenset({408, 409, 425, 429})  # and every 5xx
REDIRECTS = frozenset({301, 302, 303, 307, 308})
USELESS = frozenset({401, 403, 404})  # wrong key, path or model: all other requests would get the same
OWN_KEYS = ("messages", "model", "n", "stream")


class JudgeSettings(Section):
    """The settings of `judge`: what it asks, and how: requests at once, seconds for an answer, retries after a try."""

    model: str
    mode: Literal["rubric", "pairwise"] = "rubric"
    rubric: Annotated[str, Field(min_length=1)] | None = None
    scale: list[int] = Field([1, 10], min_length=2, max_length=2)
    reference_column: str | None = None
    against_column: str | None = None
    num_opponents: Count = 2
    seed: int = 0
    max_tokens: Count = 1024
    extra_body: dict[str, Any] = Field({})
    concurrency: Count = 16
    request_timeout_seconds: Positive = 120.0
    max_retries: Annotated[int, Field(ge=0)] = 4

    @field_validator("scale")
    @classmethod
    def rises(cls, scale: list[int]) -> list[int]:
        if scale[0] >= scale[1]:
            raise ValueError("must be [lowest, highest], such as [1, 10]")
        return scale

    @field_validator("extra_body")
    @classmethod
    def leaves_our_keys(cls, extra_body: dict[str, Any]) -> dict[str, Any]:
        if taken := next((key for key in OWN_KEYS if key in extra_body), None):
            raise ValueError(f"must not hold {taken}, which is not free")
        return extra_body


@dataclass(frozen=True)
class _Failure:
    """Why a try failed; whether another may help, after how many seconds at least; whether all requests would fail."""

    problem: Exception
    retry: bool = True
    wait: float = 0.0
    useless: bool = False


def ask_all(settings: JudgeSettings, questions: list[str]) -> list[str | Exception]:
    """The judge's text for each question, or why there is none; what stands twice or was answered before is not asked.

    An answer is kept under the hash of its request as soon as it is there, so that a run that was killed goes on where
    it stopped. A broken or deleted entry is asked again. Raises UserError where the endpoint is not set.
    """
    requests = [_request(settings, question) for question in questions]
    different = dict.fromkeys(requests)
    answers: dict[bytes, str | Exception] = {each: kept for each in different if (kept := _kept(each)) is not None}
    missing = [request for request in different if request not in answers]
    if missing:
        connection = _Connection(_endpoint(), os.environ.get(KEY), settings)
        with connection.http, ThreadPoolExecutor(settings.concurrency) as threads:
            answers.update(zip(missing, threads.map(connection.answer, missing), strict=True))
    return [answers[request] for request in requests]


def _request(settings: JudgeSettings, question: str) -> bytes:
    """The one spelling of a request: what is sent, and what its hash is taken of."""
    body = {
        "model": settings.model,
        "messages": [{"role": "user", "content": question}],
        "temperature": 0.0,
        "seed": settings.seed,
        "max_tokens": settings.max_tokens,
        **settings.extra_body,  # whose keys go before ours; null leaves one out
    }
    body = {key: value for key, value in body.items() if value is not None}
    return json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


class _Connection:
    """The requests of one call; once the endpoint refuses them all, or hangs, no more are sent.

    No server, a wrong key or model, a redirect; or a request that was never answered, where no other was either.
    """

    def __init__(self, endpoint: str, key: str | None, settings: JudgeSettings) -> None:
        import httpx2

        self.settings, self.key = settings, key
        self.useless: Exception | None = None
        self.answered = False
        self.http = httpx2.Client(
            base_url=endpoint,
            headers={"content-type": "application/json", **({"authorization": f"Bearer {key}"} if key else {})},
            timeout=httpx2.Timeout(settings.request_timeout_seconds, connect=CONNECT_SECONDS),
            limits=httpx2.Limits(max_connections=settings.concurrency, max_keepalive_connections=settings.concurrency),
            trust_env=not _is_loopback(endpoint),  # a proxy of the environment does not lead to this machine
            follow_redirects=False,  # texts and key go nowhere else
        )

    def answer(self, request: bytes) -> str | Exception:
        """The judge's text for one request, kept on disk, after as many tries as it takes; or what went wrong last."""
        if self.useless:
            return self.useless
        reply, left, wait = self._try(request), self.settings.max_retries, FIRST_WAIT
        while isinstance(reply, _Failure) and left and reply.retry and reply.wait <= LONGEST_WAIT:
            time.sleep(max(min(wait, LONGEST_WAIT), reply.wait))
            reply, left, wait = self._try(request), left - 1, wait * 2
        if isinstance(reply, _Failure):
            if reply.useless or (isinstance(reply.problem, TimeoutError) and not self.answered):
                self.useless = reply.problem
            return reply.problem
        self.answered = True
        try:
            text = _text_of(reply)
        except ValueError as problem:
            return problem
        _keep(request, text)
        return text

    def _try(self, request: bytes) -> bytes | _Failure:
        """The body of a reply with status 200, all within the time of a request: a server may send it in drops."""
        import httpx2

        end = time.monotonic() + self.settings.request_timeout_seconds
        body = bytearray()
        try:
            with self.http.stream("POST", "chat/completions", content=request) as response:
                for piece in response.iter_bytes():
                    body += piece
                    if time.monotonic() > end or len(body) > MOST_BYTES:
                        raise httpx2.ReadTimeout("the reply has no end")
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            where = "launch.yaml: score.judge_endpoint: no server answers there"
            return _Failure(ConnectionError(f"{where} ({self._quoted(str(error))})"), useless=True)
        except httpx2.TimeoutException:
            return _Failure(TimeoutError(f"no answer of the judge within {self.settings.request_timeout_seconds:g} s"))
        except httpx2.RequestError as error:  # its text may hold a header, and so the key
            return _Failure(ConnectionError(f"the exchange with the judge broke off ({type(error).__name__})"))
        status, headers = response.status_code, response.headers
        if status == 200:
            return bytes(body)
        hint = {404: " (see settings.model, and the /v1 of score.judge_endpoint)", 401: f" (the key is {KEY})"}
        hint |= dict.fromkeys(REDIRECTS, f" (redirects are not followed: {self._quoted(headers.get('location', ''))})")
        said = self._quoted(body.decode("utf-8", "replace"))
        return _Failure(
            ConnectionError(f"the judge answered HTTP {status}{hint.get(status, '')}: {said}"),
            retry=status >= 500 or status in TRY_AGAIN,
            wait=_retry_after(headers.get("retry-after")),
            useless=status in USELESS | REDIRECTS,
        )

    def _quoted(self, text: str) -> str:
        """The start of what the other side said, on one line, without our key."""
        text = " ".join(text.split())
        if self.key:
            text = text.replace(self.key, "***")
        return text if len(text) <= 120 else text[:117] + "..."


def _text_of(reply: bytes) -> str:
    """The text of a /chat/completions reply; a reply without one, or one that was cut, raises ValueError."""
    try:
        content = json.loads(reply)
    except (ValueError, RecursionError):
        raise ValueError(f"the judge's reply is no JSON: {reply[:60]!r}") from None
    match content:
        case {"choices": [{"finish_reason": "length"}, *_]}:  # "Score: 1" may be the start of "Score: 10"
            raise ValueError("the judge's answer was cut at settings.max_tokens before its end; raise it")
        case {"choices": [{"finish_reason": "stop", "message": {"content": str(text)}}, *_]} if text.strip():
            return text
    raise ValueError(f"the judge's reply holds no finished text: {reply[:120]!r}")


def _retry_after(header: str | None) -> float:
    """The seconds that the server asks to wait; 0 where it gives none (or a date)."""
    with suppress(ValueError):
        return max(0.0, float(header or 0))
    return 0.0


def _endpoint() -> str:
    endpoint = os.environ.get(ENDPOINT)
    if not endpoint:
        raise UserError(
            "launch.yaml: score.judge_endpoint: missing; the reward judge asks an OpenAI-compatible server, such as "
            "http://127.0.0.1:8000/v1 (docs/judges.md)"
        )
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
        raise UserError(
            "launch.yaml: score.judge_endpoint: must be like http://127.0.0.1:8000/v1, without name, password or "
            f"query; a key goes into the environment variable {KEY}"
        )
    return endpoint


def _is_loopback(endpoint: str) -> bool:
    host = urlsplit(endpoint).hostname or ""
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _path(request: bytes) -> Path:
    digest = hashlib.sha256(request).hexdigest()
    return CACHE / digest[:2] / f"{digest}.json"


def _kept(request: bytes) -> str | None:
    """The text kept for a request; None where there is none, or its file is broken or of another request."""
    with suppress(OSError, ValueError, RecursionError):
        match json.loads(_path(request).read_bytes()):
            case {"request": body, "answer": str(text)} if body == json.loads(request):
                return text
    return None


def _keep(request: bytes, text: str) -> None:
    """Write an answer by temporary name and rename: other processes see all of it or nothing."""
    path = _path(request)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = json.dumps({"request": json.loads(request), "answer": text}, indent=1, sort_keys=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".tmp", delete=False, encoding="utf-8") as file:
        file.write(content)
    os.replace(file.name, path)
