"""The shape of the model that `distill` makes, and what making it costs."""

from dataclasses import replace

from edgeft.preflight.machine import Speed, n_threads
from edgeft.preflight.shape import Shape, read_shape
from edgeft.preflight.tokens import Tokens
from edgeft.preflight.training import DTYPE_BYTES, generation_seconds
from edgeft.recipe import Recipe
from edgeft.training_memory import ModelShape, predict_peak

LESSON_SHARE = 0.55  # of the speed of fine-tuning: divergences over the vocabulary (restaurant8k-distill)
TEACHING_BYTES = 450e6  # answers for a batch of questions, whole distributions of a chunk (restaurant8k-distill)
CACHED_BYTES = 120  # a token of a fine-tuned teacher; 300 at most


def final_shape(recipe: Recipe, base: Shape) -> Shape:
    """Of the model that is exported: the student where one of another shape is distilled, else the base's.

    Raises ModelError when a folder the recipe names cannot be read.
    """
    section = recipe.distill
    if section is None or section.student is None:
        return base
    if section.student.base is not None:
        return read_shape(recipe.resolve(section.student.base))
    return _cut(teacher_shape(recipe, base), section.student.shape())


def teacher_shape(recipe: Recipe, base: Shape) -> Shape:
    """Of the model that teaches; the base's where that is over an API."""
    section = recipe.distill
    return read_shape(recipe.resolve(section.teacher)) if section and section.teacher else base


def distilling_seconds(recipe: Recipe, base: Shape, tokens: Tokens, speed: Speed) -> float:
    """Of the teacher's answers, its passes, one in all where it is cached, and the student's training, its evaluation
    each epoch; heads over the vocabulary run only where a token carries loss."""
    section = recipe.distill
    assert section is not None
    teacher, student = teacher_shape(recipe, base), final_shape(recipe, base)
    threads, dtype = n_threads(recipe.train.num_threads), recipe.train.torch_dtype
    rates = [speed.train_flops_per_s(one.hidden_size, dtype, threads) for one in (teacher, student)]
    of_teacher, of_student = (
        2 * (one.linear + tokens.loss_share * one.head) / rate
        for one, rate in zip((teacher, student), rates, strict=True)
    )
    epochs = section.num_train_epochs
    passes = 0.0 if section.teacher_api else epochs if section.live else 1.0
    seconds = passes * (tokens.taught + tokens.validation) * of_teacher
    seconds += epochs * (3 * tokens.taught + tokens.validation) * of_student / LESSON_SHARE
    seconds += 2 * tokens.validation * (of_teacher + of_student)
    asked = 0.0 if section.teacher_api else tokens.taught if section.seq_kd else tokens.unlabelled
    examples = asked * tokens.loss_share / max(1.0, tokens.answer)
    return seconds + asked * of_teacher + generation_seconds(teacher, examples, tokens.answer, rates[0], speed)


def distilling_bytes(recipe: Recipe, base: Shape, tokens: Tokens) -> tuple[float, float]:
    """Bytes kept on disk, and of memory at the peak."""
    section = recipe.distill
    assert section is not None
    teacher, student = teacher_shape(recipe, base), final_shape(recipe, base)
    cached = 0.0 if section.live or section.teacher_api else CACHED_BYTES * tokens.taught * tokens.loss_share
    shape = ModelShape(
        hidden=student.hidden_size,
        inner=student.inner,
        layers=student.num_hidden_layers,
        heads=student.heads,
        kv_heads=student.kv_heads,
        head_width=student.head_width,
        weight_bytes=0,
        trained=student.n_params,
        element_bytes=DTYPE_BYTES[recipe.train.torch_dtype],
        fused=False,
    )
    memory = predict_peak(shape, min(recipe.train.micro_batch_tokens, section.batch_tokens), 0)
    teaching = 0 if section.teacher_api else TEACHING_BYTES + teacher.n_params * DTYPE_BYTES[recipe.train.torch_dtype]
    return student.n_params * DTYPE_BYTES[recipe.merge.dtype] + cached, memory + teaching


def _cut(teacher: Shape, wanted: dict[str, int]) -> Shape:
    """Tables as wide as the student, and the layers of a Llama."""
    hidden = wanted.get("hidden_size", teacher.hidden_size)
    layers = wanted.get("num_hidden_layers", teacher.num_hidden_layers)
    inner = wanted.get("intermediate_size", teacher.inner)
    heads = wanted.get("num_attention_heads", teacher.heads)
    kv_heads = wanted.get("num_key_value_heads", teacher.kv_heads)
    tables = round((teacher.n_params - teacher.linear) / teacher.head)
    queries, keys = teacher.head_width * heads, teacher.head_width * kv_heads
    layer = {"q": queries, "k": keys, "v": keys, "o": queries, "gate": inner, "up": inner, "down": inner}
    norms = (2 * layers + 1) * hidden
    return replace(
        teacher,
        n_params=(tables * teacher.vocab_size + layers * sum(layer.values())) * hidden + norms,
        matrices={f"{n}.{name}": (side, hidden) for n in range(layers) for name, side in layer.items()},
        hidden_size=hidden,
        num_hidden_layers=layers,
        inner=inner,
        heads=heads,
        kv_heads=kv_heads,
    )
