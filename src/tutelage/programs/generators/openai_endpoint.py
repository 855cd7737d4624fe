"""Language models behind an OpenAI-compatible endpoint: many requests at once, retried, paced, and never for ever.

Needs the extra ``endpoint`` (httpx). The key is read from an environment variable when the model is made, is sent to
the endpoint alone, and stands in no message, result or cache.
"""

from __future__ import annotations

import email.utils
import json
import math
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from tutelage.errors import InputError, MissingExtra
from tutelage.programs.generators.base import GenerationFailed
from tutelage.programs.generators.completions import Completion, CompletionRequest
from tutelage.programs.generators.few_shot import STOP
from tutelage.programs.generators.pacing import Pace
from tutelage.programs.types import ProgramFailure

if TYPE_CHECKING:
    import httpx

KEY_VARIABLE = "TUTELAGE_API_KEY"
LARGEST = 8 << 20
"""Bytes of an answer that are read."""

_RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_OWN_FAULT = frozenset({400, 413, 422})  # of one request: it is too long, or filtered


@dataclass(frozen=True)
class EndpointSettings:
    """Where a model is and how it is asked.

    Args:
        url: the base, up to and with ``/v1``; ``api`` chat asks ``/chat/completions``, text asks ``/completions``.
        model: its name at the endpoint.
        key_variable: the environment variable that holds the key; where the default one is not set, none is sent.
        max_tokens: of one answer.
        top_p: samples are drawn from the likeliest tokens of this probability in all; None: as the endpoint does.
        probabilities: ask for log-probabilities of tokens; some endpoints refuse.
        timeout: seconds for one answer as a whole. attempts: tries of one request before it fails.
        backoff: seconds before the second try, doubled for each further one, at most ``longest_wait``, times a random
            factor in 0.5..1; a ``Retry-After`` is waited for instead, unless it is over ``longest_wait``.
        concurrency: requests under way at once. per_minute: at most so many begin in a minute.
        price_in, price_out: of a million tokens read and written.
    """

    url: str
    model: str
    api: Literal["chat", "text"] = "chat"
    key_variable: str = KEY_VARIABLE
    max_tokens: int = 1024
    top_p: float | None = None
    probabilities: bool = True
    timeout: float = 60.0
    attempts: int = 5
    backoff: float = 1.0
    longest_wait: float = 120.0
    concurrency: int = 8
    per_minute: float | None = None
    price_in: float | None = None
    price_out: float | None = None

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            known = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and not parts.query + parts.fragment
        except ValueError:
            known = False
        if not known:
            raise InputError("not the address of an endpoint", where="url", remedy="https://host/v1")
        if parts.username is not None or parts.password is not None:
            remedy = f"leave it out, and set {self.key_variable}"
            raise InputError("the address holds a user or password", where="url", remedy=remedy)
        for name in ("max_tokens", "timeout", "attempts", "longest_wait", "concurrency"):
            if not getattr(self, name) > 0:
                raise InputError(f"{getattr(self, name)} is not over 0", where=name, remedy="give a positive number")
        for name in ("backoff", "price_in", "price_out"):
            if (getattr(self, name) or 0) < 0:
                raise InputError(f"{getattr(self, name)} is below 0", where=name, remedy="give 0 or more")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise InputError(f"{self.top_p} is no share of the probability", where="top_p", remedy="over 0, at most 1")
        if self.per_minute is not None and not self.per_minute > 0:
            raise InputError(f"{self.per_minute} is not over 0", where="per_minute", remedy="leave it out for no limit")


class RetryableError(Exception):
    """A fault that may pass: ``kind`` is counted, ``wait`` the seconds that the endpoint asks for."""

    def __init__(self, kind: str, message: str, wait: float | None = None):
        self.kind, self.message, self.wait = kind, message, wait
        super().__init__(message)


class Endpoint:
    """A language model at an endpoint. ``faults`` counts what went wrong and was tried again or given up, by kind:
    an HTTP status, "timeout", "connection" (refused or cut), "not JSON", "no choices", "too large".

    Raises:
        MissingExtra: httpx is not installed.
        InputError: the variable named for the key is not set.
    """

    def __init__(self, settings: EndpointSettings, *, seed: int = 0):
        try:
            import httpx
        except ImportError:
            raise MissingExtra("httpx", "endpoint") from None
        try:
            httpx.URL(settings.url)
        except httpx.InvalidURL as error:
            raise InputError(f"not the address of an endpoint: {error}", where="url", remedy="https://host/v1") from None
        self.options, self.faults = settings, Counter[str]()
        self._httpx, self._jitter, self._lock = httpx, random.Random(seed), threading.Lock()
        self._pace = Pace(settings.per_minute)
        self._key = os.environ.get(settings.key_variable, "").strip()
        if not self._key and settings.key_variable != KEY_VARIABLE:
            remedy = f"export {settings.key_variable}=…"
            raise InputError("the environment variable is not set", where=settings.key_variable, remedy=remedy)
        if not (self._key.isascii() and self._key.isprintable()):
            raise InputError("not a key", where=settings.key_variable, remedy="a key is one line of plain characters")

    @property
    def name(self) -> str:
        """endpoint, and the model's own name."""
        return f"endpoint:{self.options.model}"

    @property
    def settings(self) -> Mapping[str, Any]:
        """What changes its answers."""
        kept = ("url", "model", "api", "max_tokens", "probabilities")
        nucleus = {} if self.options.top_p is None else {"top_p": self.options.top_p}
        return {"kind": "endpoint"} | {name: getattr(self.options, name) for name in kept} | nucleus

    def complete(self, requests: Sequence[CompletionRequest]) -> Iterator[tuple[int, Completion | ProgramFailure]]:
        """Ask all, ``concurrency`` at a time.

        Raises:
            InputError: the endpoint does not know the key, the model or the path: no request could succeed.
        """
        if not requests:
            return
        stop = threading.Event()
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        client = self._httpx.Client(headers=headers, timeout=self.options.timeout, follow_redirects=False)
        pool = ThreadPoolExecutor(min(self.options.concurrency, len(requests)), "endpoint")
        try:
            pending = {pool.submit(self._answer, client, ask, stop): number for number, ask in enumerate(requests)}
            for future in as_completed(pending):
                yield pending[future], future.result()
        finally:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            client.close()

    def _answer(self, client: httpx.Client, request: CompletionRequest, stop: threading.Event) -> Completion | ProgramFailure:
        """One ask, tried again while its faults may pass."""
        body, fault = self._body(request), RetryableError("stopped", "stopped")
        for attempt in range(self.options.attempts):
            self._pace.start(stop.wait)
            if stop.is_set():
                break
            try:
                return self._try(client, body)
            except GenerationFailed as failure:
                return failure
            except RetryableError as passing:
                fault = passing
            with self._lock:
                self.faults[fault.kind] += 1
                factor = self._jitter.uniform(0.5, 1.0)
            if fault.wait is not None and fault.wait > self.options.longest_wait:
                message = f"{fault.message}; it asks to wait {fault.wait:.0f} s"
                return GenerationFailed(message, where=self.options.url, remedy="go on later: what was answered is kept")
            if attempt + 1 < self.options.attempts:
                backoff = min(self.options.backoff * 2**attempt, self.options.longest_wait) * factor
                if fault.wait is not None:
                    self._pace.hold(fault.wait)
                    backoff = fault.wait + backoff * 0.1
                stop.wait(backoff)
        message = f"no answer in {self.options.attempts} attempts: {fault.message}"
        return GenerationFailed(
            message, where=self.options.url, remedy="is the endpoint up? allow more attempts or a longer timeout"
        )

    def _body(self, request: CompletionRequest) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.options.model,
            "temperature": request.temperature,
            "max_tokens": self.options.max_tokens,
        }
        if self.options.top_p is not None:
            body["top_p"] = self.options.top_p
        if request.seed is not None:
            body["seed"] = request.seed
        if self.options.api == "chat":
            body["messages"] = request.prompt.messages
            if self.options.probabilities:
                body["logprobs"] = True
        else:
            body |= {"prompt": request.prompt.text, "stop": list(STOP)}
            if self.options.probabilities:
                body["logprobs"] = 0
        return body

    def _try(self, client: httpx.Client, body: dict[str, Any]) -> Completion:
        path = "chat/completions" if self.options.api == "chat" else "completions"
        address, httpx = f"{self.options.url.rstrip('/')}/{path}", self._httpx
        end = time.monotonic() + self.options.timeout
        try:
            with client.stream("POST", address, content=json.dumps(body)) as response:
                content = bytearray()
                for chunk in response.iter_bytes():
                    content += chunk
                    if time.monotonic() > end:
                        raise RetryableError("timeout", f"no whole answer in {self.options.timeout:g} s")
                    if len(content) > LARGEST:
                        raise RetryableError("too large", f"an answer over {LARGEST >> 20} MiB")
        except httpx.TimeoutException:
            raise RetryableError("timeout", f"no answer in {self.options.timeout:g} s") from None
        except (httpx.TransportError, httpx.DecodingError, httpx.StreamError, RuntimeError) as error:
            raise RetryableError("connection", f"{type(error).__name__}: {error}") from None
        # Some endpoints quote the key in their errors: it goes no further.
        own_body = bytes(content).replace(self._key.encode(), b"\xe2\x80\xa6") if self._key else bytes(content)
        if response.status_code != 200:
            self._refused(response.status_code, response.headers, own_body, address)
        return read_completion(own_body, self.options.api)

    def _refused(self, status: int, headers: Mapping[str, str], content: bytes, address: str) -> None:
        """Raise what the status means."""
        message = f"HTTP {status}: {_error_text(content)}"
        if status in _RETRIED or status >= 500:
            raise RetryableError(str(status), message, retry_after(headers.get("retry-after")))
        if status in _OWN_FAULT:
            with self._lock:
                self.faults[str(status)] += 1
            remedy = "shorten the prompt; or does the endpoint not know a setting, such as probabilities?"
            raise GenerationFailed(message, where=self.options.url, remedy=remedy)
        remedy = f"set {self.options.key_variable}" if status in (401, 403) else "check the address and the model's name"
        raise InputError(message, where=address, remedy=remedy)


def retry_after(header: str | None, now: Callable[[], float] = time.time) -> float | None:
    """The seconds that a ``Retry-After`` asks for, given in seconds or as a date; None where it says neither."""
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(header).timestamp() - now()
        except (ValueError, OverflowError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def read_completion(content: bytes, api: str = "chat") -> Completion:
    """The completion in the JSON of an answer with status 200.

    Raises:
        NoDraft: the model refused, or answered with no text.
        Passing: not JSON, or no choices.
    """
    try:
        answer = json.loads(content)
        choices = answer["choices"]
    except (ValueError, RecursionError):
        raise RetryableError("not JSON", f"not JSON: {content[:60]!r}") from None
    except (TypeError, KeyError):
        raise RetryableError("no choices", f"no choices: {_error_text(content)}") from None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise RetryableError("no choices", "an answer without choices")
    choice, usage = choices[0], answer.get("usage")
    message = choice.get("message") if api == "chat" else choice
    text = message.get("content" if api == "chat" else "text") if isinstance(message, dict) else None
    if not isinstance(text, str):
        refusal = message.get("refusal") if isinstance(message, dict) else None
        raise GenerationFailed(f"the model gave no text: {_whole(refusal or choice.get('finish_reason'))[:200]}")
    usage = usage if isinstance(usage, dict) else {}
    tokens_in, tokens_out = (_count(usage.get(name)) for name in ("prompt_tokens", "completion_tokens"))
    finish, model = _whole(choice.get("finish_reason") or "stop"), _whole(answer.get("model", ""))
    return Completion(_whole(text), finish, _probability(choice.get("logprobs")), tokens_in, tokens_out, model)


def _probability(logprobs: Any) -> float | None:
    """The mean probability of the tokens, from either API's form."""
    if not isinstance(logprobs, dict):
        return None
    values: Any = logprobs.get("token_logprobs")
    if isinstance(logprobs.get("content"), list):
        values = [token.get("logprob") for token in logprobs["content"] if isinstance(token, dict)]
    if not isinstance(values, list):
        return None
    numbers = [value for value in values if isinstance(value, (int, float)) and not isinstance(value, bool)]
    known = [value for value in numbers if -1e9 < value <= 0]
    return sum(map(math.exp, known)) / len(known) if known else None


def _count(value: Any) -> int | None:
    return value if type(value) is int and value >= 0 else None


def _error_text(content: bytes) -> str:
    """What an error's body says, in one line."""
    try:
        body = json.loads(content)
        found = body.get("error", body.get("detail", body)) if isinstance(body, dict) else body
        text = found.get("message", found) if isinstance(found, dict) else found
    except (ValueError, RecursionError):
        text = content[:300].decode(errors="replace")
    return " ".join(_whole(text).split())[:300]


def _whole(value: Any) -> str:
    """A value as text without halves of characters, which JSON may hold and files may not."""
    return str(value).encode(errors="replace").decode()
