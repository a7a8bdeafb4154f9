"""One model for many: threads, streams that take turns, cancelling, closing. The answer alone is the oracle."""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

import pytest

from edgeft.errors import RuntimeFault
from edgeft.runtime import Model, load
from edgeft.runtime.turns import Turns

PROMPTS = ["turn on the light", "play some music", "what is the weather like?", "add milk, bread and 12 eggs"]


def chat(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def resident_bytes() -> int:
    import psutil

    return int(psutil.Process().memory_info().rss)


def test_many_threads_get_the_answers_they_get_alone(either: Model) -> None:
    def ask(number: int) -> tuple[Any, ...]:
        prompt = PROMPTS[number % 4] * (1 + number % 3)
        ids = either.tokenize(prompt)
        if number % 5 == 0:
            return tuple(either.stream(ids, max_new_tokens=24, ignore_eos=True))
        if number % 5 == 1:
            return tuple(either.score(ids)[-1].tolist())
        if number % 5 == 2:
            return tuple(either.generate(ids, max_new_tokens=24, temperature=1.0, seed=number))
        return (either.chat(chat(prompt), max_new_tokens=24).text,)

    alone = [ask(number) for number in range(30)]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(ask, range(30))) == alone


def test_streams_of_one_thread_take_turns(either: Model) -> None:
    ids = [either.tokenize(prompt) for prompt in PROMPTS]
    alone = [list(either.stream(each, max_new_tokens=9, ignore_eos=True)) for each in ids]
    streams = [either.stream(each, max_new_tokens=9, ignore_eos=True) for each in ids]
    together = list(zip_longest(*streams))
    assert [list(each) for each in zip(*together, strict=True)] == alone


def test_turns_go_to_whoever_waited_longest() -> None:
    turns, order = Turns(), []

    def wait(number: int) -> None:
        with turns:
            order.append(number)

    with turns:
        threads = []
        for number in range(8):
            threads.append(threading.Thread(target=wait, args=(number,)))
            threads[-1].start()
            while len(turns._waiting) <= number:
                time.sleep(0.001)
    for thread in threads:
        thread.join()
    assert order == list(range(8))
    with turns:  # and the lock is free again
        pass


@pytest.mark.parametrize("n_before", [0, 1, 5])
def test_cancelling_stops_before_the_next_token(either: Model, n_before: int) -> None:
    ids = either.tokenize(PROMPTS[0])
    cancel = threading.Event()
    stream = either.stream(ids, max_new_tokens=50, ignore_eos=True, cancel=cancel)
    assert len(list(islice(stream, n_before))) == n_before
    cancel.set()
    assert list(stream) == []
    answer = either.chat(chat(PROMPTS[0]), cancel=cancel)
    assert (answer.finish_reason, answer.n_new, answer.text) == ("cancelled", 0, "")


def test_a_long_prompt_is_cancelled_between_its_batches(either_path: Path) -> None:
    cancel = threading.Event()
    with load(either_path, n_threads=1) as model:
        system = "play some music. " * 90
        decode, lengths = model._decode, []  # type: ignore[attr-defined]

        def cancelled_meanwhile(ids: list[int], n_logits: int) -> Any:
            lengths.append(len(ids))
            cancel.set()
            return decode(ids, n_logits)

        model._decode = cancelled_meanwhile  # type: ignore[attr-defined]
        messages = [{"role": "system", "content": system}, *chat("a")]
        assert len(model.tokenize(model.render(messages))) > 520
        assert model.chat(messages, cancel=cancel, max_new_tokens=2).finish_reason == "cancelled"
    assert lengths == [512]


def test_an_answer_in_another_thread_is_cancelled(either: Model) -> None:
    cancel = threading.Event()
    pieces: list[str] = []
    stream = either.chat(chat(PROMPTS[0]), max_new_tokens=10_000, stream=True, cancel=cancel)

    def read() -> None:
        for piece in stream:
            pieces.append(piece)
            cancel.set()

    thread = threading.Thread(target=read)
    thread.start()
    thread.join(timeout=60)
    assert not thread.is_alive()
    assert len(pieces) <= 2  # the one that was there, and text that was held back
    assert stream.answer.finish_reason == "cancelled"


def test_leaving_a_stream_ends_the_answer(either: Model) -> None:
    with either.chat(chat(PROMPTS[0]), stream=True) as stream:
        first = next(stream)
    assert (stream.answer.text, stream.answer.finish_reason) == (first, "cancelled")
    assert list(stream) == []


def test_asynchronous_calls_are_the_others(either: Model) -> None:
    ids = either.tokenize(PROMPTS[1])

    async def all_at_once() -> list[Any]:
        async def pieces() -> str:
            return "".join([piece async for piece in either.astream(chat(PROMPTS[0]), max_new_tokens=20)])

        return await asyncio.gather(
            either.agenerate(ids, max_new_tokens=20),
            either.achat(chat(PROMPTS[0]), max_new_tokens=20),
            pieces(),
            either.aclassify(PROMPTS[2], ["light", "music"]),
        )

    tokens, answer, text, choice = asyncio.run(all_at_once())
    assert tokens == either.generate(ids, max_new_tokens=20)
    assert answer.text == text == either.chat(chat(PROMPTS[0]), max_new_tokens=20).text
    assert choice == either.classify(PROMPTS[2], ["light", "music"])


def test_cancelling_a_task_ends_its_answer(either_path: Path) -> None:
    """The thread is held in its second token behind the prompt until the task is gone; it begins no third."""
    reached, released = threading.Event(), threading.Event()
    with load(either_path, n_threads=1) as model:
        decode, n_decoded = model._decode_one, []  # type: ignore[attr-defined]

        def held(token: int) -> Any:
            n_decoded.append(token)
            if len(n_decoded) == 2:
                reached.set()
                released.wait()
            return decode(token)

        async def impatient() -> None:
            task = asyncio.create_task(model.achat(chat(PROMPTS[0]), regex="(a|b){800}", max_new_tokens=800))
            await asyncio.to_thread(reached.wait)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            released.set()

        model._decode_one = held  # type: ignore[attr-defined]
        asyncio.run(impatient())  # waits for its threads
        assert len(n_decoded) == 2
        model._decode_one = decode  # type: ignore[attr-defined]
        assert model.generate([5, 6], max_new_tokens=2) is not None  # the turn is free


def test_leaving_an_asynchronous_stream_ends_it(either: Model) -> None:
    async def one_piece() -> None:
        pieces = either.astream(chat(PROMPTS[0]), max_new_tokens=900)
        async for _ in pieces:
            break
        await pieces.aclose()  # type: ignore[attr-defined]

    asyncio.run(one_piece())
    assert either.generate([5, 6], max_new_tokens=2) is not None


def uses(model: Model) -> list[Callable[[], Any]]:
    return [
        lambda: model.score([1]),
        lambda: model.generate([1], max_new_tokens=1),
        lambda: model.chat(chat("a")),
        lambda: model.classify("a", ["b", "c"]),
    ]


def test_a_closed_model_says_so(either_path: Path) -> None:
    model = load(either_path, n_threads=1, n_ctx=64)
    begun = model.stream([5, 6], max_new_tokens=9, ignore_eos=True)
    next(begun)
    model.close()
    model.close()
    for use in [*uses(model), lambda: next(begun)]:
        with pytest.raises(RuntimeFault, match="this model was closed"):
            use()


def test_closing_waits_for_the_threads_that_use_it(either_path: Path) -> None:
    model = load(either_path, n_threads=1)
    started = threading.Barrier(5)

    def use(number: int) -> str:
        started.wait()
        try:
            while True:
                model.detokenize(model.generate(model.tokenize(PROMPTS[number]), max_new_tokens=9))
        except RuntimeFault as fault:
            return str(fault)

    with ThreadPoolExecutor(4) as threads:
        results = [threads.submit(use, number) for number in range(4)]
        started.wait()
        time.sleep(0.02)
        model.close()
        assert all("this model was closed" in result.result() for result in results)


def test_opening_and_closing_leaves_no_memory_behind(either_path: Path) -> None:
    def cycle() -> None:
        with load(either_path, n_threads=1, n_ctx=512) as model:
            model.generate([5, 6, 7], max_new_tokens=2)

    for _ in range(10):
        cycle()
    before = resident_bytes()
    for _ in range(40):
        cycle()
    assert resident_bytes() < 1.03 * before
