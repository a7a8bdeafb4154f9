"""System prompts evaluated once: the answer without a cache is the oracle."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeft.runtime import load
from edgeft.runtime.base import TextModel
from edgeft.runtime.prefix_cache import MAGIC, MAX_FILES, PrefixCache, common_length

SYSTEM = "You are a home assistant. Turn on lights, set timers, play music by the piano. " * 4


def chat(text: str, system: str = SYSTEM) -> list[dict[str, str]]:
    return [{"role": "system", "content": system}, {"role": "user", "content": text}]


class Counted:
    """Counts the tokens that a model runs."""

    def __init__(self, model: Any) -> None:
        self.n_run, self._decode = 0, model._decode
        model._decode = self

    def __call__(self, ids: Any, n_logits: int) -> Any:
        self.n_run += len(ids)
        return self._decode(ids, n_logits)


class Nothing(PrefixCache):
    """A cache that keeps nothing."""

    def put(self, ids: Any, state: bytes) -> None:
        pass


def answers(model: Any) -> list[Any]:
    texts = [model.chat(chat(text), max_new_tokens=16).text for text in ("turn on the light", "0 milk", "turn", "")]
    return [*texts, model.classify("play some music", ["music", "light"], system=SYSTEM).probabilities]


def test_answers_are_the_same_from_memory_and_from_disk(either_path: Path, tmp_path: Path) -> None:
    with load(either_path, n_threads=1) as plain:
        plain._prefixes = Nothing()  # type: ignore[attr-defined]
        counted = Counted(plain)
        expected = answers(plain)
        n_plain, n_system = counted.n_run, len(plain.tokenize(SYSTEM))
    with load(either_path, n_threads=1, cache_dir=tmp_path / "cache") as first:
        counted = Counted(first)
        assert answers(first) == expected
        assert counted.n_run <= n_plain - 4 * n_system
    assert len(list((tmp_path / "cache").iterdir())) == 1
    with load(either_path, n_threads=1, cache_dir=tmp_path / "cache") as second:
        counted = Counted(second)
        assert answers(second) == expected
        assert counted.n_run <= n_plain - 5 * n_system


def damages() -> dict[str, Callable[[Path], Any]]:
    def change(at: int) -> Callable[[Path], Any]:
        def write(path: Path) -> None:
            content = bytearray(path.read_bytes())
            content[at] ^= 1
            path.write_bytes(content)

        return write

    return {
        "empty": lambda path: path.write_bytes(b""),
        "cut": lambda path: path.write_bytes(path.read_bytes()[:-1]),
        "longer": lambda path: path.write_bytes(path.read_bytes() + b"0"),
        "other format": change(0),
        "other hash": change(len(MAGIC)),
        "other state": change(-1),
        "writable by others": lambda path: path.chmod(0o666),
        "a link": lambda path: (path.rename(path.with_suffix(".moved")), path.symlink_to(path.with_suffix(".moved"))),
        "a folder": lambda path: (path.unlink(), path.mkdir()),
        "unreadable": lambda path: path.chmod(0),
    }


@pytest.mark.parametrize("damage", damages())
def test_a_file_that_is_not_what_was_written_is_not_believed(model_file: Path, tmp_path: Path, damage: str) -> None:
    def answer() -> tuple[str, int]:
        with load(model_file, n_threads=1, cache_dir=tmp_path) as model:
            counted = Counted(model)
            return model.chat(chat("turn on the light"), max_new_tokens=8).text, counted.n_run

    first = answer()
    (file,) = tmp_path.iterdir()
    damages()[damage](file)
    if damage == "unreadable" and os.geteuid() == 0:
        pytest.skip("root reads everything")
    assert answer() == first


@pytest.mark.parametrize(
    "change", [lambda state: b"", lambda state: state[:7], lambda state: state[:-9], lambda state: b"\xff" * len(state)]
)
def test_a_state_that_the_backend_refuses_is_forgotten(either_path: Path, tmp_path: Path, change: Any) -> None:
    with load(either_path, n_threads=1, cache_dir=tmp_path) as model:
        expected = model.chat(chat("turn on the light"), max_new_tokens=8).text
        cache: PrefixCache = model._prefixes  # type: ignore[attr-defined]
        ((key, state),) = cache._held.items()
        (file,) = tmp_path.iterdir()
        cache._write(tmp_path, key, change(state))
        cache.clear()
        assert model.chat(chat("turn on the light"), max_new_tokens=8).text == expected
        assert cache._held[key] == state
        assert file.stat().st_size == len(MAGIC) + 32 + len(state)


def test_other_files_of_the_model_have_other_states(model_file: Path, onnx_folder: Path, tmp_path: Path) -> None:
    changed = tmp_path / "changed.gguf"
    content = bytearray(model_file.read_bytes())
    content[-5] ^= 1
    changed.write_bytes(content)
    for number, path in enumerate((model_file, changed, onnx_folder, model_file), 1):
        with load(path, n_threads=1, cache_dir=tmp_path / "cache") as model:
            model.chat(chat("a"), max_new_tokens=1)
        assert len(list((tmp_path / "cache").iterdir())) == min(number, 3)


def test_a_cache_that_cannot_be_written_is_none(model_file: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with load(model_file, n_threads=1, cache_dir=tmp_path / "file") as model:
        assert model.chat(chat("a"), max_new_tokens=1).n_new <= 1
    assert (tmp_path / "file").read_text() == "in the way"


def test_only_the_latest_states_are_kept_on_disk(tmp_path: Path) -> None:
    cache = PrefixCache()
    cache.keep_in(tmp_path, lambda: b"model")
    for number in range(MAX_FILES + 5):
        cache.put([number], bytes(8))
    assert len(list(tmp_path.iterdir())) == MAX_FILES
    cache.clear()
    assert cache.get([MAX_FILES + 4]) == bytes(8)
    assert cache.get([0]) is None


def test_short_prompts_and_chats_without_system_message_are_not_kept(either_path: Path, tmp_path: Path) -> None:
    with load(either_path, n_threads=1, cache_dir=tmp_path / "cache") as model:
        assert isinstance(model, TextModel)
        model.chat(chat("a", system="b"), max_new_tokens=1)
        model.chat([{"role": "user", "content": SYSTEM}], max_new_tokens=1)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(("a", "b", "n"), [([], [1], 0), ([1, 2], [1, 2, 3], 2), ([1, 2], [1, 3], 1), ([4], [5], 0)])
def test_common_length(a: list[int], b: list[int], n: int) -> None:
    assert common_length(a, b) == common_length(b, a) == n
