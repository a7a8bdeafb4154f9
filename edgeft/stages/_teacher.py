"""What a student is taught with: the teacher's distributions on the prepared examples, or its answers to them."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from edgeft.artifact import Artifact
from edgeft.console import Log
from edgeft.data.answer_log import AnswerLog, question_of, with_answers, with_record
from edgeft.data.chat import Example, named_line, read_chat, read_questions
from edgeft.data.rendering import encode_chat, encode_prompt
from edgeft.data.teacher_api import ApiTeacher, Endpoint
from edgeft.errors import ModelError, UsageError
from edgeft.recipe import Recipe
from edgeft.sections.distill import Distill, TeacherApi
from edgeft.training.attention import use_packed_attention
from edgeft.training.batches import Examples, TokenSet
from edgeft.training.distill_losses import Divergence, Objective, Teacher, distillation_loss_sum
from edgeft.training.generation import find_stop_ids, generate_greedily
from edgeft.training.loop import LossSum
from edgeft.training.losses import next_token_loss_sum
from edgeft.training.models import apply_template, base_sha256, load_model, load_tokenizer
from edgeft.training.on_policy import OnPolicySet
from edgeft.training.recorded import RecordedAnswer, recorded_set
from edgeft.training.teacher_cache import CachedSet, CacheRequest, cache_teacher
from edgeft.training.vocabulary import check_heads, describe_difference, shared_vocabulary

ANSWERED_AT_ONCE = 64


@dataclass(frozen=True)
class Lesson:
    """What the student learns from: `examples` under `loss_sum`, judged on `validation`; `metrics` of the cache."""

    examples: Examples
    validation: Examples | None
    loss_sum: LossSum
    metrics: dict[str, float]


@dataclass(frozen=True)
class LocalTeacher:
    """A model folder that teaches. `vocabulary`: the tokens it shares with the student, None when it has its own."""

    folder: Path
    vocabulary: int | None
    torch_dtype: str

    @staticmethod
    def find(folder: Path, tokenizer: Path, section: Distill, torch_dtype: str) -> "LocalTeacher":
        """The teacher in `folder` for data of this tokenizer. Raises ModelError when it has another one and its
        distributions are asked for."""
        vocabulary = shared_vocabulary(tokenizer, folder)
        if vocabulary is None and not section.seq_kd:
            raise ModelError(
                f"the teacher's tokens are not the student's: {describe_difference(tokenizer, folder)}; their "
                "distributions cannot be compared. Set distill.seq_kd: true to learn from the teacher's answers"
            )
        if vocabulary is None and section.live and section.top_k is not None:
            raise ModelError("distill: hidden_weight and lmbda need a teacher with the student's tokenizer")
        return LocalTeacher(folder, vocabulary, torch_dtype)

    @property
    def key(self) -> str:
        """Hex sha256 of weights, config and type."""
        parts = [base_sha256(self.folder), (self.folder / "config.json").read_text("utf-8"), self.torch_dtype]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    @property
    def width(self) -> int:
        """Of its hidden states."""
        config = AutoConfig.from_pretrained(self.folder, local_files_only=True, trust_remote_code=False)
        return int(config.get_text_config().hidden_size)

    def load(self) -> Any:
        """The model in its type."""
        return load_model(self.folder, self.torch_dtype)

    def load_packed(self) -> Teacher:
        """The model, ready to answer for packed rows. Raises ModelError when its head lacks a token."""
        assert self.vocabulary is not None
        model = self.load()
        check_heads(self.vocabulary, model)
        use_packed_attention(model)
        return Teacher(model, self.vocabulary)


def make_lesson(
    recipe: Recipe, section: Distill, data: Artifact, teacher: LocalTeacher | None, student: Any, root: Path, log: Log
) -> Lesson:
    """Compute, record or load what the teacher says of the prepared examples. `teacher` None: it is over an API.

    Caches and answers go to `root`, named by what they depend on, for other runs to find.
    """
    splits = {name: TokenSet.load(data.file(f"tokens-{name}.npz")) for name in ("train", "validation")}
    if teacher is None:
        assert section.teacher_api is not None
        return _lesson_over_api(recipe, section, section.teacher_api, data, root, log)
    answered = [*(_examples(data, "train") if section.seq_kd else []), *_unlabelled(data)]
    if answered:
        taught = _taught_tokens(answered, recipe, section, data, teacher, root, log)
        splits["train"] = taught if section.seq_kd else splits["train"].joined(taught)
    if teacher.vocabulary is None:
        log.say("distill: teacher and student cut texts otherwise; the student learns the teacher's answers alone")
        return Lesson(splits["train"], _unless_empty(splits["validation"]), next_token_loss_sum, {})
    check_heads(teacher.vocabulary, student)
    objective = _objective(section)
    if section.live:
        live = teacher.load_packed()
        loss_sum = distillation_loss_sum(objective, teacher.vocabulary, live)
        examples = _on_policy(recipe, section, data, splits["train"], student) if section.lmbda else splits["train"]
        return Lesson(examples, _unless_empty(splits["validation"]), loss_sum, {})
    request = CacheRequest(
        teacher.key,
        teacher.vocabulary,
        section.temperature,
        section.top_k if isinstance(section.top_k, int) else None,
        section.cache_kl,
        recipe.train.micro_batch_tokens,
    )
    cached = {
        name: cache_teacher(root, tokens, request, teacher.load_packed, log)
        for name, tokens in splits.items()
        if len(tokens)
    }
    return _cached_lesson(objective, teacher.vocabulary, cached["train"], cached.get("validation"))


def _cached_lesson(objective: Objective, vocabulary: int, train: CachedSet, validation: CachedSet | None) -> Lesson:
    metrics = {
        "cache_bytes": float(train.n_bytes),
        "cache_bytes_per_token": train.bytes_per_token,
        "cache_top_k": train.mean_k,
        "cache_kl": train.kl,
        "cache_tail_mass": train.tail_mass,
    }
    return Lesson(train, validation, distillation_loss_sum(objective, vocabulary), metrics)


def _objective(section: Distill) -> Objective:
    divergence = Divergence(section.beta, section.temperature, section.skew_alpha)
    return Objective(divergence, section.kd_ratio, section.hidden_weight)


def _on_policy(recipe: Recipe, section: Distill, data: Artifact, tokens: TokenSet, student: Any) -> OnPolicySet:
    return OnPolicySet(
        tokens,
        student,
        section.lmbda,
        recipe.seed,
        find_stop_ids(load_tokenizer(data.path / "tokenizer"), student),
        section.max_new_tokens,
        recipe.data.max_length,
        section.temperature,
    )


def _taught_tokens(
    examples: list[Example],
    recipe: Recipe,
    section: Distill,
    data: Artifact,
    teacher: LocalTeacher,
    root: Path,
    log: Log,
) -> TokenSet:
    """The examples with the teacher's greedy answers."""
    tokenizer = load_tokenizer(data.path / "tokenizer" if teacher.vocabulary is not None else teacher.folder)
    if tokenizer.chat_template is None:
        apply_template(tokenizer, recipe.model.chat_template, recipe.folder)
    settings = {"teacher": teacher.key, "max_new_tokens": section.max_new_tokens, "template": tokenizer.chat_template}
    answers = AnswerLog(root / f"teacher-answers-{teacher.key[:16]}.jsonl", settings)
    questions = [question_of(example) for example in examples]
    with answers.locked():
        unanswered = [question for question in questions if answers.find(question) is None]
        if unanswered:
            _answer(unanswered, answers, teacher.load(), tokenizer, section.max_new_tokens, log)
    found = [answers.find(question) or {} for question in questions]
    taught = with_answers(examples, [record["answer"] for record in found])
    return _encode(taught, recipe, data, len(examples), log)


def _answer(
    questions: Sequence[dict[str, Any]], answers: AnswerLog, model: Any, tokenizer: Any, max_new_tokens: int, log: Log
) -> None:
    """Add the model's greedy answers to the log."""
    stop_ids = find_stop_ids(tokenizer, model)
    with log.progress("teacher answers", len(questions), "examples") as progress:
        for at in range(0, len(questions), ANSWERED_AT_ONCE):
            asked = questions[at : at + ANSWERED_AT_ONCE]
            prompts = [encode_prompt(tokenizer, **question) for question in asked]
            found = generate_greedily(model, prompts, stop_ids=stop_ids, max_new_tokens=max_new_tokens)
            for question, ids in zip(asked, found, strict=True):
                answers.add(question, str(tokenizer.decode(ids, skip_special_tokens=True)).strip())
            progress.update(at + len(asked))


def _lesson_over_api(recipe: Recipe, section: Distill, api: TeacherApi, data: Artifact, root: Path, log: Log) -> Lesson:
    """The teacher's answers, and where they were asked for the likely tokens at each position."""
    endpoint = Endpoint(
        api.base_url,
        api.model,
        _api_key(api),
        api.max_tokens,
        api.top_logprobs,
        api.requests_per_minute,
        api.input_price,
        api.output_price,
        api.max_cost,
        api.max_retries,
        api.timeout,
    )
    name = hashlib.sha256(json.dumps(endpoint.settings()).encode()).hexdigest()[:16]
    teacher = ApiTeacher(endpoint, AnswerLog(root / f"teacher-answers-{name}.jsonl", endpoint.settings()))
    taught: dict[str, list[tuple[Example, dict[str, Any]]]] = {}
    for split in ("train", "validation"):
        examples = [*_examples(data, split), *(_unlabelled(data) if split == "train" else [])]
        with log.progress(f"teacher answers, {split}", len(examples), "examples") as progress:
            records = teacher.answer_all([question_of(example) for example in examples], progress.update)
        pairs = zip(examples, records, strict=True)
        taught[split] = [(one, r) for e, r in pairs if (one := with_record(e, r)) is not None]
    log.say(f"teacher over an API: every pair is in {teacher.log.path}; {teacher.spent:.4f} spent in all")
    metrics = {"teacher_cost": teacher.spent}
    if not api.top_logprobs:
        tokens = {split: _encode([e for e, _ in p], recipe, data, len(p), log) for split, p in taught.items()}
        validation = _unless_empty(tokens["validation"])
        return Lesson(tokens["train"], validation, next_token_loss_sum, metrics)
    tokenizer: Any = load_tokenizer(data.path / "tokenizer")
    sets = {
        split: recorded_set(_recorded(pairs, tokenizer, recipe.data.max_length), tokenizer, api.top_logprobs)
        for split, pairs in taught.items()
    }
    vocabulary = sets["train"].layout.vocabulary
    lesson = _cached_lesson(_objective(section), vocabulary, sets["train"], sets["validation"])
    return Lesson(lesson.examples, _unless_empty(sets["validation"]), lesson.loss_sum, metrics)


def _recorded(pairs: Sequence[tuple[Example, dict[str, Any]]], tokenizer: Any, max_length: int) -> list[RecordedAnswer]:
    """The examples of at most `max_length` tokens with what the API sent of their answers."""
    answers = []
    for example, record in pairs:
        if not record.get("logprobs"):
            raise ModelError(
                "distill.teacher_api: the endpoint sent no log-probabilities; set top_logprobs: 0 to learn from its "
                "answers alone"
            )
        with named_line(example.path, example.line):
            ids, mask = encode_chat(tokenizer, example.messages, example.extra.get("tools"))
        if len(ids) <= max_length:
            answers.append(RecordedAnswer(ids, mask, record["logprobs"]))
    return answers


def _encode(examples: Sequence[Example], recipe: Recipe, data: Artifact, asked: int, log: Log) -> TokenSet:
    """Tokens of the examples as the data stage would make them; what is too long is left out, and said."""
    tokenizer: Any = load_tokenizer(data.path / "tokenizer")
    encoded = []
    for example in examples:
        with named_line(example.path, example.line):
            encoded.append(encode_chat(tokenizer, example.messages, example.extra.get("tools")))
    kept = [(ids, mask) for ids, mask in encoded if len(ids) <= recipe.data.max_length]
    if len(kept) < asked:
        log.say(
            f"teacher answers: {asked - len(examples)} of {asked} are empty, {len(encoded) - len(kept)} longer than "
            f"data.max_length = {recipe.data.max_length} tokens; left out"
        )
    if asked and not kept:
        raise ModelError("the teacher gave no answer that can be learned; look at its answers and data.max_length")
    return TokenSet.build(kept)


def _examples(data: Artifact, split: str) -> list[Example]:
    names = [f"{split}.jsonl", f"{split}-variants.jsonl"]
    return [example for name in names for example in _read(data, name, read_chat)]


def _unlabelled(data: Artifact) -> list[Example]:
    """The questions of which only the teacher knows the answers."""
    return _read(data, "unlabelled.jsonl", read_questions)


def _read(data: Artifact, name: str, read: Callable[[Path], list[Example]]) -> list[Example]:
    """The examples of a file; none where there is no such file, or nothing in it."""
    return read(data.file(name)) if name in data.files and data.files[name].bytes else []


def _unless_empty(examples: Any) -> Any:
    return examples if len(examples) else None


def _api_key(api: TeacherApi) -> str | None:
    if api.api_key_env is None:
        return None
    if not os.environ.get(api.api_key_env):
        raise UsageError(f"distill.teacher_api.api_key_env: the environment variable {api.api_key_env} is not set")
    return os.environ[api.api_key_env]
