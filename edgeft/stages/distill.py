"""Stage `distill`: a smaller model, or the one training made, learns what a teacher says of the prepared examples."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch

from edgeft.artifact import Artifact
from edgeft.bench.metrics import score_texts
from edgeft.console import Log
from edgeft.errors import ModelError, RecipeError
from edgeft.machine.process import peak_rss_bytes
from edgeft.recipe import Recipe
from edgeft.sections.distill import Distill
from edgeft.stages._json import write_json
from edgeft.stages._model import final_model
from edgeft.stages._tasks import MAX_ANSWER_TOKENS
from edgeft.stages._teacher import Lesson, LocalTeacher, make_lesson
from edgeft.training.attention import use_packed_attention
from edgeft.training.batches import TokenSet, plan_epochs
from edgeft.training.distill_losses import Objective, add_projection, distillation_loss_sum, remove_projection
from edgeft.training.keeping import SaveRule
from edgeft.training.loop import LoopConfig, LoopResult, mean_loss, train_loop
from edgeft.training.memory import keep_freed_memory
from edgeft.training.models import DTYPES, autocast_type, load_model, load_tokenizer
from edgeft.training.optim import make_adamw
from edgeft.training.student import Shape, make_student
from edgeft.training.vocabulary import describe_difference, shared_vocabulary
from edgeft.training.watching import TaskEvaluation

CALIBRATION_TOKENS = 16384


def run(recipe: Recipe, inputs: dict[str, Artifact], out: Path, log: Log) -> dict[str, float]:
    """Write the student as a Hugging Face folder in `merge.dtype`, with tokenizer, provenance.json and log.jsonl.

    The teacher's distributions and answers are kept beside `out`, named by what they depend on: other runs in the
    same work folder, trials of a search among them, read them. Raises ModelError when teacher and student do not go
    together, TrainingError when the training cannot go on.
    """
    section = recipe.distill
    if section is None:
        raise RecipeError(f"{recipe.name}: the recipe has no distill section")
    if recipe.train.num_threads:
        torch.set_num_threads(recipe.train.num_threads)
    torch.manual_seed(recipe.seed)
    keep_freed_memory()
    data, before = inputs["data"], final_model(inputs)
    teacher = _find_teacher(recipe, section, data, before)
    student = _make_student(recipe, section, data, before, teacher)
    parameters = sum(p.numel() for p in student.parameters())
    log.say(f"distill: a student of {parameters:,} parameters")
    validation = TokenSet.load(data.file("tokens-validation.npz"))
    measured = _judge(recipe, teacher, student, data, validation, "before", log)
    lesson = make_lesson(recipe, section, data, teacher, student, out.parent, log)
    result = _learn(recipe, section, student, lesson, teacher, out, log)
    measured |= _judge(recipe, teacher, student, data, validation, "after", log)
    _save(recipe, section, data, before, teacher, student, out)
    return {
        "train_loss": result.last_loss,
        "first_loss": result.first_loss,
        "steps": float(result.steps),
        "tokens": float(result.tokens),
        "seconds": result.seconds,
        "student_parameters": float(parameters),
        "peak_rss_bytes": float(peak_rss_bytes()),
        **result.metrics,
        **lesson.metrics,
        **measured,
    }


def _find_teacher(recipe: Recipe, section: Distill, data: Artifact, before: Artifact) -> LocalTeacher | None:
    """The model folder that teaches; None where the teacher is over an API."""
    if section.teacher_api is not None:
        return None
    folder = recipe.resolve(section.teacher) if section.teacher else before.path
    if not folder.is_dir():
        raise ModelError(f"distill.teacher: {folder} is not a folder; give a Hugging Face model folder")
    return LocalTeacher.find(folder, data.path / "tokenizer", section, recipe.train.torch_dtype)


def _make_student(
    recipe: Recipe, section: Distill, data: Artifact, before: Artifact, teacher: LocalTeacher | None
) -> Any:
    """The student in float32, attending to packed rows."""
    wanted, tokenizer = section.student, data.path / "tokenizer"
    if wanted is not None and wanted.base is None:
        assert teacher is not None  # the recipe says so
        if teacher.vocabulary is None:
            raise ModelError(
                f"distill.student: one cut from the teacher has its tokenizer, which is not that of the data: "
                f"{describe_difference(tokenizer, teacher.folder)}; make the teacher's folder model.base"
            )
        tokens = _some(TokenSet.load(data.file("tokens-train.npz")), CALIBRATION_TOKENS)
        shape = Shape(**wanted.shape())
        model = load_model(teacher.folder)
        student = make_student(model, shape, wanted.layer_strategy, tokens, recipe.train.micro_batch_tokens)
    else:
        folder = before.path if wanted is None else recipe.resolve(str(wanted.base))
        if shared_vocabulary(tokenizer, folder) is None:
            raise ModelError(
                f"distill.student.base: its tokens are not those of the prepared data: "
                f"{describe_difference(tokenizer, folder)}; make it the recipe's model.base and give the larger model "
                "as distill.teacher with seq_kd: true"
            )
        student = load_model(folder)
    use_packed_attention(student)
    return student


def _learn(
    recipe: Recipe, section: Distill, student: Any, lesson: Lesson, teacher: LocalTeacher | None, out: Path, log: Log
) -> LoopResult:
    """Train every weight of the student on the lesson."""
    train = recipe.train.model_copy(update={"learning_rate": section.learning_rate, "optim": "adamw"})
    if section.hidden_weight and teacher is not None:
        add_projection(student, teacher.width)
    plan = plan_epochs(
        lesson.examples.lengths,
        batch_tokens=section.batch_tokens,
        epochs=section.num_train_epochs,
        seed=recipe.seed,
    )
    epoch_steps = max(1, round(len(plan) / section.num_train_epochs))
    best = train.metric_for_best_model == "eval_loss" and lesson.validation is not None
    config = LoopConfig(
        learning_rate=section.learning_rate,
        lr_scheduler_type=train.lr_scheduler_type,
        warmup_steps=train.warmup_steps,
        max_grad_norm=train.max_grad_norm or float("inf"),
        micro_batch_tokens=train.micro_batch_tokens,
        save=SaveRule(epoch_steps=epoch_steps, steps=train.save_steps),
        eval_steps=train.eval_steps or epoch_steps,
        autocast=autocast_type(train.torch_dtype),
        resume=train.resume_from_checkpoint,
        metric_for_best_model="eval_loss" if best else None,
        early_stopping_patience=train.early_stopping_patience if best else None,
    )
    log.say(f"distill: {len(lesson.examples):,} examples, {len(plan)} steps, products in {train.torch_dtype}")
    result = train_loop(
        student,
        make_adamw(student.parameters(), train),
        lesson.examples,
        plan,
        lesson.loss_sum,
        config,
        out=out,
        log=log,
        validation=lesson.validation,
        label="distill",
    )
    remove_projection(student)
    return result


def _judge(
    recipe: Recipe,
    teacher: LocalTeacher | None,
    student: Any,
    data: Artifact,
    validation: TokenSet,
    when: str,
    log: Log,
) -> dict[str, float]:
    """KL(teacher ‖ student) over all tokens at temperature 1, in nats a token of the validation set, and the score
    of student and teacher on its answers, where the recipe names `train.eval_examples`."""
    measured: dict[str, float] = {}
    if not len(validation):
        return measured
    live = teacher.load_packed() if teacher is not None and teacher.vocabulary is not None else None
    if live is not None:
        config = LoopConfig(0.0, "constant", 0, float("inf"), recipe.train.micro_batch_tokens)
        loss_sum = distillation_loss_sum(Objective(), live.vocabulary, live)
        measured[f"kl_to_teacher_{when}"] = mean_loss(student, validation, loss_sum, config)
    if recipe.train.eval_examples:
        evaluate = _task(recipe, data, validation)
        measured |= {f"{name}_{when}": value for name, value in evaluate(student).items()}
        if live is not None and when == "before":
            measured |= {f"teacher_{name}": value for name, value in evaluate(live.model).items()}
    shown = ", ".join(f"{name} {value:.4g}" for name, value in measured.items())
    log.say(f"validation {when} distillation: {shown}")
    return measured


def _task(recipe: Recipe, data: Artifact, validation: TokenSet) -> TaskEvaluation:
    metrics = recipe.train.eval_metrics

    def score(predictions: Any, references: Any) -> dict[str, float]:
        return {s.metric: s.value for s in score_texts(metrics, predictions, references)}

    return TaskEvaluation.of(
        validation,
        load_tokenizer(data.path / "tokenizer"),
        score,
        examples=recipe.train.eval_examples,
        max_new_tokens=MAX_ANSWER_TOKENS,
    )


def _save(
    recipe: Recipe,
    section: Distill,
    data: Artifact,
    before: Artifact,
    teacher: LocalTeacher | None,
    student: Any,
    out: Path,
) -> None:
    """The folder as merge writes it, and where the student comes from."""
    student.set_attn_implementation("sdpa")
    student.to(DTYPES[recipe.merge.dtype]).save_pretrained(out)
    for path in sorted((data.path / "tokenizer").iterdir()):
        shutil.copyfile(path, out / path.name)
    generation = before.path / "generation_config.json"
    if generation.is_file():
        shutil.copyfile(generation, out / generation.name)
    asked = json.dumps(section.model_dump(mode="json"), sort_keys=True)
    api = section.teacher_api
    provenance = json.loads(before.file("provenance.json").read_bytes()) | {
        "distill_sha256": hashlib.sha256(asked.encode()).hexdigest(),
        "teacher": section.teacher or (f"{api.model} at {api.base_url}" if api else before.stage),
        "teacher_sha256": teacher.key if teacher is not None else "unknown",
    }
    if section.student is not None:
        provenance["student"] = section.student.base or "cut from the teacher"
    write_json(out / "provenance.json", provenance)


def _some(tokens: TokenSet, count: int) -> TokenSet:
    """The first examples of at least `count` tokens."""
    n = min(len(tokens), int(tokens.offsets.searchsorted(count)))
    end = tokens.offsets[n]
    return TokenSet(tokens.input_ids[:end], tokens.loss_mask[:end], tokens.offsets[: n + 1])
