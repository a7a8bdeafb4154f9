"""A teacher behind any OpenAI-compatible endpoint: POST BASE_URL/chat/completions, one question at a time.

Format: https://platform.openai.com/docs/api-reference/chat/create; llama.cpp's server, vLLM and Ollama speak it too.
Nothing is sent anywhere but to the `base_url` the recipe names.
"""

import ipaddress
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from email.message import Message
from http.client import HTTPException
from typing import Any

from edgeft.conversation.canonical import with_text_arguments
from edgeft.data.answer_log import AnswerLog
from edgeft.errors import RunCutShort, RuntimeFault, UsageError

RETRIED = (408, 409, 425, 429, 500, 502, 503, 504)
LONGEST_WAIT_S = 60.0
SHOWN_BODY = 300


@dataclass(frozen=True)
class Endpoint:
    """Where the teacher answers and within which bounds.

    `requests_per_minute` None: as fast as it answers. Prices are for a million tokens, in the currency of `max_cost`,
    which is never exceeded: before each request its dearest outcome is counted (a token for every byte of the
    question, `max_tokens` of answer). `max_retries` tries more after the first, `timeout_s` each.
    """

    base_url: str
    model: str
    api_key: str | None = None
    max_tokens: int = 256
    top_logprobs: int = 0
    requests_per_minute: float | None = None
    input_price: float = 0.0
    output_price: float = 0.0
    max_cost: float | None = None
    max_retries: int = 5
    timeout_s: float = 120.0

    def __post_init__(self) -> None:
        parts = urllib.parse.urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"distill.teacher_api.base_url: {self.base_url} is not http://… or https://…")
        if self.api_key and parts.scheme == "http" and not _is_local(parts.hostname):
            raise UsageError(
                f"distill.teacher_api.base_url: {self.base_url} would carry the API key unencrypted; use https://"
            )

    def settings(self) -> dict[str, Any]:
        """What an answer depends on."""
        return {
            "base_url": self.base_url,
            "model": self.model,
            "max_tokens": self.max_tokens,
            "top_logprobs": self.top_logprobs,
        }


class ApiTeacher:
    """Asks an endpoint and records every pair; `sleep` and `clock` are seams for tests."""

    def __init__(
        self,
        endpoint: Endpoint,
        log: AnswerLog,
        *,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.endpoint, self.log, self.sleep, self.clock = endpoint, log, sleep, clock
        self.spent = 0.0
        self.asked_at: float | None = None
        self.opener = urllib.request.build_opener(_NoRedirects)

    def answer_all(
        self, questions: Sequence[Mapping[str, Any]], report: Callable[[int], None] = lambda done: None
    ) -> list[dict[str, Any]]:
        """The record of each question (`AnswerLog`), asked where the log has none.

        Raises RunCutShort when the next request could exceed `max_cost`, RuntimeFault when the endpoint refuses or
        stays unreachable; what was answered until then is in the log.
        """
        with self.log.locked():
            self.spent = sum(float(record.get("cost", 0.0)) for record in self.log.records.values())
            for done, question in enumerate(questions):
                if self.log.find(question) is None:
                    self._check_cost(question, done, len(questions))
                    self._ask(question)
                report(done + 1)
            return [self.log.find(question) or {} for question in questions]

    def _ask(self, question: Mapping[str, Any]) -> None:
        endpoint = self.endpoint
        body = {"model": endpoint.model, "temperature": 0, "max_tokens": endpoint.max_tokens, **question}
        body["messages"] = with_text_arguments(question["messages"])
        if endpoint.top_logprobs:
            body |= {"logprobs": True, "top_logprobs": endpoint.top_logprobs}
        response = self._post(body)
        try:
            choice = response["choices"][0]
            text, calls = choice["message"].get("content") or "", choice["message"].get("tool_calls")
        except (KeyError, IndexError, TypeError, AttributeError):
            raise RuntimeFault(f"{endpoint.base_url}: not a chat completion: {str(response)[:SHOWN_BODY]}") from None
        usage = response.get("usage") or {}
        most_in, most_out = _bytes(question), endpoint.max_tokens
        cost = (
            usage.get("prompt_tokens", most_in) * endpoint.input_price
            + usage.get("completion_tokens", most_out) * endpoint.output_price
        ) / 1e6
        self.spent += cost
        logprobs = (choice.get("logprobs") or {}).get("content")
        self.log.add(
            question,
            text,
            model=response.get("model", endpoint.model),
            finish_reason=choice.get("finish_reason"),
            usage=usage,
            cost=cost,
            **({"logprobs": logprobs} if logprobs else {}),
            **({"tool_calls": calls} if calls else {}),
        )

    def _check_cost(self, question: Mapping[str, Any], done: int, total: int) -> None:
        endpoint = self.endpoint
        if endpoint.max_cost is None:
            return
        dearest = (_bytes(question) * endpoint.input_price + endpoint.max_tokens * endpoint.output_price) / 1e6
        if self.spent + dearest > endpoint.max_cost:
            raise RunCutShort(
                f"distill.teacher_api.max_cost: {self.spent:.4f} of {endpoint.max_cost:g} spent after {done} of "
                f"{total} questions, and the next could cost {dearest:.4f}; the answers are kept in {self.log.path}: "
                "raise max_cost and run again, or train on fewer examples"
            )

    def _post(self, body: Mapping[str, Any]) -> Any:
        """The response to `body`, after waiting out the rate limit and retrying what may pass."""
        url = self.endpoint.base_url.rstrip("/") + "/chat/completions"
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self.endpoint.api_key:
            headers["Authorization"] = f"Bearer {self.endpoint.api_key}"
        request = urllib.request.Request(url, json.dumps(body).encode(), headers, method="POST")
        problem = ""
        for attempt in range(self.endpoint.max_retries + 1):
            self._wait_for_turn()
            after = None
            try:
                with self.opener.open(request, timeout=self.endpoint.timeout_s) as response:
                    return json.loads(response.read())
            except urllib.error.HTTPError as error:
                problem = f"{error.code} {error.reason}: {error.read(SHOWN_BODY).decode('utf-8', 'replace')}"
                if error.code not in RETRIED:
                    raise RuntimeFault(f"{url} refused: {problem}") from None
                after = _retry_after(error.headers)
            except (urllib.error.URLError, HTTPException, OSError, ValueError) as error:
                problem = f"{type(error).__name__}: {error}"
            if attempt < self.endpoint.max_retries:
                self.sleep(after if after is not None else min(LONGEST_WAIT_S, 2.0**attempt))
        raise RuntimeFault(
            f"{url}: no answer after {self.endpoint.max_retries + 1} tries ({problem}); the answers so far are kept in "
            f"{self.log.path}: look at the endpoint and run again"
        )

    def _wait_for_turn(self) -> None:
        if self.endpoint.requests_per_minute and self.asked_at is not None:
            turn = self.asked_at + 60.0 / self.endpoint.requests_per_minute
            if turn > self.clock():
                self.sleep(turn - self.clock())
        self.asked_at = self.clock()


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key, and the question, to a host the recipe does not name."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _retry_after(headers: Message) -> float | None:
    """Seconds the server asks to wait (RFC 9110, 10.2.3; its date form is not read)."""
    text = headers.get("Retry-After", "")
    return min(LONGEST_WAIT_S, float(text)) if text.isdecimal() else None


def _bytes(question: Mapping[str, Any]) -> int:
    """More than the tokens of a question: no token is shorter than a byte, and JSON adds what a template may."""
    return len(json.dumps(question, ensure_ascii=False).encode())


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
