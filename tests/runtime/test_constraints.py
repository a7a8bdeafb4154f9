"""Constrained answers of a random model, greedy and drawn: jsonschema-rs, `re` and the lists are the oracles."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema_rs
import numpy as np
import pytest

from edgeft.errors import ModelError, RuntimeFault, UsageError
from edgeft.runtime import Model
from edgeft.runtime.chat import AnswerStream
from edgeft.runtime.constraints import Constrainer
from edgeft.runtime.sampling import sampler
from tests.json_schemas import SCHEMAS

CHAT = [{"role": "user", "content": "turn on the kitchen light and set a timer"}]
SAMPLED: dict[str, Any] = {"temperature": 1.0, "top_p": 0.95}


@pytest.mark.parametrize("name", SCHEMAS)
def test_json_is_valid_under_its_schema(either: Model, name: str) -> None:
    validator = jsonschema_rs.validator_for(SCHEMAS[name])
    for options in ({}, {**SAMPLED, "seed": 1}, {**SAMPLED, "seed": 2, "repeat_penalty": 1.3}):
        answer = either.chat(CHAT, schema=SCHEMAS[name], max_new_tokens=600, **options)
        assert answer.finish_reason == "stop", answer
        validator.validate(json.loads(answer.text))
        assert "\n" not in answer.text


@pytest.mark.parametrize(
    "pattern", [r"[0-9]{3}-[0-9]{4}", r"(on|off)( the (light|radio)){1,2}", r"[α-ω]{2,5}!", r"\p{Lu}[a-z]{0,3}"]
)
def test_a_regular_expression_is_matched(either: Model, pattern: str) -> None:
    # Python's `re` knows no \p{Lu}; str.isupper does.
    python = pattern.replace(r"\p{Lu}", "(?P<upper>.)")
    for seed in range(3):
        answer = either.chat(CHAT, regex=pattern, max_new_tokens=60, temperature=1.0, seed=seed)
        found = re.fullmatch(python, answer.text)
        assert found, answer
        assert found.groupdict().get("upper", "A").isupper()


def test_one_of_the_choices_is_taken(either: Model) -> None:
    choices = ["light", "lights", 'say "é"', "日本\\n", "<|im_end|>"]
    found = {either.chat(CHAT, choices=choices, temperature=2.0, seed=seed).text for seed in range(12)}
    assert found <= {*choices, ""}  # what is spelled like a special token is written in letters
    assert len(found) > 1


@pytest.mark.parametrize("grammar", ['start: ("a" | "b")+ ";"', 'root ::= ("a" | "b")+ ";"'])
def test_a_grammar_is_followed(either: Model, grammar: str) -> None:
    with either.chat(CHAT, grammar=grammar, stream=True, temperature=1.0, max_new_tokens=400) as stream:
        assert isinstance(stream, AnswerStream)
        text = "".join(stream)
    assert re.fullmatch("[ab]+;", text)
    assert stream.answer.finish_reason == "stop"


def test_greedy_takes_the_best_of_the_tokens_allowed(either: Model) -> None:
    """At every token, against the model's own logits and each token's letters."""
    spelled = {token: either.detokenize([token]) for token in range(either.n_vocab)}
    prompt, answer = either.tokenize(either.render(CHAT)), ""
    ids = list(prompt)
    while len(answer) < 6:
        room = 6 - len(answer)
        allowed = [token for token, text in spelled.items() if re.fullmatch(f"[a-h]{{1,{room}}}", text)]
        row = either.score(ids)[-1]
        ids.append(max(allowed, key=lambda token: row[token]))
        answer += spelled[ids[-1]]
    found = either.chat(CHAT, regex="[a-h]{6}")
    assert (found.text, found.n_new) == (answer, len(ids) - len(prompt))


def test_a_cut_answer_says_so(either: Model) -> None:
    answer = either.chat(CHAT, schema=SCHEMAS["array of objects"], max_new_tokens=2)
    assert (answer.finish_reason, answer.n_new) == ("length", 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schema": {"type": "thing"}}, "schema: Invalid type: thing"),
        ({"schema": {"not": {"type": "string"}}}, r"schema: Unimplemented keys: \[\"not\"\]"),
        ({"schema": "{}"}, "schema: must be a JSON Schema"),
        ({"schema": {"const": {1, 2}}}, "schema: .*not JSON serializable"),
        ({"regex": "("}, "(?s)regex: .*unclosed group"),
        ({"regex": 5}, "regex: "),
        ({"grammar": "start: nothing"}, "grammar: .*nothing"),
        ({"choices": []}, "choices: must be one or more texts"),
        ({"choices": "yes"}, "choices: must be one or more texts"),
        ({"choices": ["a", ""]}, "choices: must be one or more texts"),
        ({"choices": ["a"], "regex": "a"}, "regex and choices: an answer follows one of them"),
    ],
)
def test_constraints_that_make_no_sense(either: Model, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        either.chat(CHAT, **options)


def test_a_token_that_is_not_allowed_ends_the_constraint(either: Model) -> None:
    constraint = either.constraint("regex", "[0-9]+")  # type: ignore[attr-defined]
    with pytest.raises(RuntimeFault, match="the constraint cannot be followed any further: "):
        constraint.take(either.tokenize("a")[0])


class Padded:
    """A vocabulary of bytes whose model has 43 rows more."""

    path, n_vocab, eos_ids = Path("padded"), 300, frozenset({256})

    def token_bytes(self) -> list[bytes]:
        return [*(bytes([byte]) for byte in range(256)), b"<end>"]

    def special_ids(self) -> frozenset[int]:
        return self.eos_ids

    def tokenize(self, text: str) -> list[int]:
        return list(text.encode())


class Spaced(Padded):
    """As sentencepiece does, it puts a space before every text."""

    def tokenize(self, text: str) -> list[int]:
        return list(f" {text}".encode())


@pytest.mark.parametrize("vocabulary", [Padded, Spaced])
def test_tokens_that_are_forced_spell_just_what_must_follow(vocabulary: Any) -> None:
    constraint = Constrainer(vocabulary()).constraint("schema", {"enum": ["on a", "on b"]})
    assert bytes(constraint.forced()) == b'"on '
    assert bytes(constraint.take(ord("b"))) == b'"'
    assert constraint.fulfilled


@pytest.mark.parametrize("greedy", [True, False])
def test_rows_without_a_token_are_never_taken(greedy: bool) -> None:
    model: Any = Padded()
    constraint = Constrainer(model).constraint("regex", "[ab]+")
    logits = np.zeros(300, np.float32)
    logits[[299, ord("c"), ord("b")]] = 9, 8, 7
    assert constraint.pick(sampler(), logits, [], greedy=greedy) == ord("b")
    constraint.take(ord("b"))
    logits[256] = 8.5
    assert constraint.pick(sampler(), logits, [], greedy=greedy) == 256


def test_a_model_without_end_token_is_told() -> None:
    model: Any = Padded()
    model.eos_ids = frozenset()
    with pytest.raises(ModelError, match="no token ends an answer"):
        Constrainer(model)


def test_without_the_package_its_extra_is_named(repo_root: Path, model_file: Path) -> None:
    code = (
        "import sys; sys.modules['llguidance'] = None\n"
        "import edgeft.runtime, edgeft.errors\n"
        "model = edgeft.runtime.load(sys.argv[1])\n"
        "model.chat([{'role': 'user', 'content': 'a'}], max_new_tokens=1)\n"
        "try: model.chat([{'role': 'user', 'content': 'a'}], regex='a')\n"
        "except edgeft.errors.MissingExtra as error: print(error)"
    )
    command = [sys.executable, "-c", code, str(model_file)]
    done = subprocess.run(command, cwd=repo_root, capture_output=True, text=True, check=True)
    assert "edgeft[constrain]" in done.stdout
