"""A teacher over an API: a scripted server for what goes wrong, llama.cpp's own for what goes right."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from edgeft.console import silent_log
from edgeft.data.answer_log import AnswerLog, question_of, with_answers, with_record
from edgeft.data.chat import Example
from edgeft.data.teacher_api import ApiTeacher, Endpoint
from edgeft.errors import DataError, RunCutShort, RuntimeFault, UsageError


def _ask(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]}


def _completion(text: str, **usage: int) -> tuple[int, dict[str, str], bytes]:
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return 200, {}, json.dumps({"choices": [choice], "usage": usage, "model": "big"}).encode()


class _Scripted:
    """A server that gives its answers one after another, the last one for ever, and keeps what it was asked."""

    def __init__(self, *replies: Any) -> None:
        self.replies, self.requests, self.headers = list(replies), [], []
        script = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                script.headers.append(dict(self.headers))
                script.requests.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                reply = script.replies.pop(0) if len(script.replies) > 1 else script.replies[0]
                if reply is None:  # hang up
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                status, headers, body = reply
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/v1"


@pytest.fixture
def serve() -> Iterator[Any]:
    servers: list[_Scripted] = []

    def start(*replies: Any) -> _Scripted:
        servers.append(_Scripted(*replies))
        return servers[-1]

    yield start
    for scripted in servers:
        scripted.server.shutdown()
        scripted.server.server_close()


class _Clock:
    """Time that passes only in `sleep`."""

    def __init__(self) -> None:
        self.now, self.slept = 0.0, []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def _teacher(url: str, path: Path, clock: _Clock | None = None, **options: Any) -> ApiTeacher:
    endpoint = Endpoint(url, "big", **({"max_retries": 3} | options))
    clock = clock or _Clock()
    return ApiTeacher(endpoint, AnswerLog(path, endpoint.settings()), sleep=clock.sleep, clock=clock)


def test_every_pair_is_recorded_and_asked_once(serve: Any, tmp_path: Path) -> None:
    server = serve(_completion("one"), _completion("two"))
    log = tmp_path / "answers.jsonl"
    teacher = _teacher(server.url, log, api_key="secret")
    assert [r["answer"] for r in teacher.answer_all([_ask("1"), _ask("2"), _ask("1")])] == ["one", "two", "one"]
    assert [r["answer"] for r in _teacher(server.url, log).answer_all([_ask("2"), _ask("1")])] == ["two", "one"]
    assert len(server.requests) == 2
    assert server.requests[0] == {"model": "big", "temperature": 0, "max_tokens": 256, **_ask("1")}
    assert server.headers[0]["Authorization"] == "Bearer secret"
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert [row["question"] for row in rows] == [_ask("1"), _ask("2")]
    assert "secret" not in log.read_text()


@pytest.mark.parametrize("arguments", ['{"on": true}', {"on": True}])
def test_calls_are_asked_and_recorded_in_openais_form(serve: Any, tmp_path: Path, arguments: Any) -> None:
    """The API takes arguments as text alone; a teacher that calls a tool says nothing beside it."""
    given = {"id": "c1", "type": "function", "function": {"name": "light", "arguments": arguments}}
    wanted = {**given, "function": {"name": "light", "arguments": '{"on": true}'}}
    message = {"role": "assistant", "content": None, "tool_calls": [wanted]}
    body = {"choices": [{"message": message, "finish_reason": "tool_calls"}], "usage": {}, "model": "big"}
    server = serve((200, {}, json.dumps(body).encode()))
    question = {
        "messages": [{"role": "assistant", "content": "", "tool_calls": [given]}, {"role": "user", "content": "q"}]
    }
    (record,) = _teacher(server.url, tmp_path / "answers.jsonl").answer_all([question])
    assert server.requests[0]["messages"][0]["tool_calls"] == [wanted]
    example = Example(question["messages"], Path("f"), 3, {})
    taught = with_record(example, record)
    assert taught is not None
    assert taught.messages == [*example.question, {"role": "assistant", "content": "", "tool_calls": [wanted]}]
    assert with_record(example, {"answer": " "}) is None


def test_a_killed_recording_goes_on_where_it_stopped(serve: Any, tmp_path: Path) -> None:
    log = tmp_path / "answers.jsonl"
    server = serve(_completion("one"), _completion("two"))
    _teacher(server.url, log).answer_all([_ask("1"), _ask("2")])
    log.write_bytes(log.read_bytes()[:-9])
    again = _teacher(server.url, log)
    assert [r["answer"] for r in again.answer_all([_ask("1"), _ask("2")])] == ["one", "two"]
    assert [request["messages"][0]["content"] for request in server.requests] == ["1", "2", "2"]


def test_two_runs_at_once_ask_every_question_once(serve: Any, tmp_path: Path) -> None:
    server, questions = serve(_completion("x", prompt_tokens=1)), [_ask(str(i)) for i in range(6)]
    teachers = [_teacher(server.url, tmp_path / "a", input_price=1.0) for _ in range(2)]
    threads = [threading.Thread(target=teacher.answer_all, args=(questions,)) for teacher in teachers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.requests) == 6
    assert teachers[0].spent == teachers[1].spent > 0


def test_other_settings_are_other_answers(serve: Any, tmp_path: Path) -> None:
    server = serve(_completion("one"), _completion("longer"))
    _teacher(server.url, tmp_path / "a.jsonl").answer_all([_ask("1")])
    assert _teacher(server.url, tmp_path / "a.jsonl", max_tokens=9).answer_all([_ask("1")])[0]["answer"] == "longer"


@pytest.mark.parametrize(
    ("failures", "waits"),
    [
        ([(429, {"Retry-After": "7"}, b"slow down")], [7.0]),
        ([(503, {}, b"")] * 2, [1.0, 2.0]),
        ([None, (500, {}, b"oops")], [1.0, 2.0]),
        ([(200, {}, b"not json")], [1.0]),
    ],
)
def test_what_may_pass_is_tried_again(serve: Any, tmp_path: Path, failures: list[Any], waits: list[float]) -> None:
    server, clock = serve(*failures, _completion("at last")), _Clock()
    assert _teacher(server.url, tmp_path / "a", clock).answer_all([_ask("1")])[0]["answer"] == "at last"
    assert clock.slept == waits


@pytest.mark.parametrize(
    ("reply", "requests", "expected"),
    [
        ((401, {}, b"bad key"), 1, "refused: 401 Unauthorized: bad key"),
        ((302, {"Location": "http://127.0.0.1:9/"}, b""), 1, "refused: 302"),
        ((500, {}, b"broken"), 4, r"no answer after 4 tries \(500 .*broken\); the answers so far are kept in"),
        ((200, {}, b'{"error": "x"}'), 1, "not a chat completion"),
    ],
)
def test_what_will_not_pass_is_said(serve: Any, tmp_path: Path, reply: Any, requests: int, expected: str) -> None:
    server = serve(reply)
    with pytest.raises(RuntimeFault, match=expected):
        _teacher(server.url, tmp_path / "a").answer_all([_ask("1")])
    assert len(server.requests) == requests


def test_requests_keep_their_distance(serve: Any, tmp_path: Path) -> None:
    clock = _Clock()
    _teacher(serve(_completion("x")).url, tmp_path / "a", clock, requests_per_minute=30).answer_all(
        [_ask(str(i)) for i in range(4)]
    )
    assert clock.slept == [2.0, 2.0, 2.0]


def test_the_cost_cap_is_never_exceeded(serve: Any, tmp_path: Path) -> None:
    """100 tokens of answer at 10 a million cost 0.001; of 12 questions a cap of 0.005 pays for five or fewer."""
    server = serve(_completion("x", prompt_tokens=10, completion_tokens=100))
    options = {"max_tokens": 100, "output_price": 10.0, "input_price": 1.0, "max_cost": 0.005}
    with pytest.raises(RunCutShort, match=r"spent after 4 of 12 questions, .* raise max_cost and run again"):
        _teacher(server.url, tmp_path / "a", **options).answer_all([_ask(str(i)) for i in range(12)])
    spent = sum(json.loads(line)["cost"] for line in (tmp_path / "a").read_text().splitlines())
    assert spent == pytest.approx(4 * (100 * 10.0 + 10 * 1.0) / 1e6)
    with pytest.raises(RunCutShort):  # what is in the log counts
        _teacher(server.url, tmp_path / "a", **options).answer_all([_ask(str(i)) for i in range(12)])
    assert len(server.requests) == 4


@pytest.mark.parametrize(
    ("url", "key", "expected"),
    [
        ("api.example.com/v1", None, "is not http"),
        ("file:///etc/passwd", None, "is not http"),
        ("http://api.example.com/v1", "secret", "would carry the API key unencrypted; use https"),
    ],
)
def test_urls_that_are_refused(url: str, key: str | None, expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        Endpoint(url, "m", api_key=key)


def test_a_log_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_text('{"key": 1}\n')
    with pytest.raises(DataError, match=r"a:1: not an answer edgeft recorded"):
        AnswerLog(tmp_path / "a", {})


def test_examples_get_the_teachers_answers() -> None:
    example = Example(
        [{"role": "user", "content": "q"}, {"role": "assistant", "content": "old"}], Path("f"), 1, {"tools": [1]}
    )
    assert question_of(example) == {"messages": [{"role": "user", "content": "q"}], "tools": [1]}
    (changed,) = with_answers([example, example], ["new", " "])
    assert (changed.answer, changed.extra) == ("new", {"tools": [1]})


@pytest.fixture(scope="module")
def llama_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """llama-cpp-python's server in a child process, with a tiny random model."""
    pytest.importorskip("fastapi")
    pytest.importorskip("llama_cpp")
    from edgeft.export.gguf.write import write_gguf
    from tests.tiny import make_tiny_llama

    folder = tmp_path_factory.mktemp("server")
    make_tiny_llama(folder / "model", seed=5)
    write_gguf(folder / "model", folder / "model.gguf", ftype="F32", name="tiny", provenance={}, log=silent_log())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "llama_cpp.server", "--model", str(folder / "model.gguf"), "--port", str(port)]
    command += ["--host", "127.0.0.1", "--n_ctx", "256", "--n_threads", "1", "--logits_all", "true"]
    with (folder / "log").open("w") as log:
        child = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        url = f"http://127.0.0.1:{port}/v1"
        for _ in range(600):
            try:
                urllib.request.urlopen(url + "/models", timeout=1).close()
                break
            except OSError:
                assert child.poll() is None, (folder / "log").read_text()[-2000:]
                time.sleep(0.1)
        yield url, folder / "model.gguf"
    finally:
        child.kill()
        child.wait()


@pytest.mark.slow
def test_a_real_server_answers(llama_server: tuple[str, Path], tmp_path: Path) -> None:
    """Oracle: the same file asked through llama_cpp in this process."""
    import llama_cpp

    url, path = llama_server
    endpoint = Endpoint(url, "any", max_tokens=12, top_logprobs=5, requests_per_minute=600)
    teacher = ApiTeacher(endpoint, AnswerLog(tmp_path / "answers.jsonl", endpoint.settings()))
    questions = [_ask("turn on the light"), _ask("what is the weather?")]
    records = teacher.answer_all(questions)
    llama = llama_cpp.Llama(str(path), n_ctx=256, n_threads=1, logits_all=True, verbose=False)
    for question, record in zip(questions, records, strict=True):
        wanted = llama.create_chat_completion(**question, temperature=0, max_tokens=12, logprobs=True, top_logprobs=5)
        assert record["answer"] == wanted["choices"][0]["message"]["content"]
        assert record["usage"] == wanted["usage"]
        theirs = wanted["choices"][0]["logprobs"]["content"]
        assert [position["token"] for position in record["logprobs"]] == [position["token"] for position in theirs]
        assert [position["logprob"] for position in record["logprobs"]] == pytest.approx(
            [position["logprob"] for position in theirs], rel=1e-4
        )
