"""The recipe reader: YAML 1.2 scalars, every problem with its line, overrides, keys that are read."""

import ast
import importlib.util
import json
from pathlib import Path

import pytest
import yaml

from edgeft import yaml12
from edgeft.bench.budgets import TASK_METRICS
from edgeft.errors import RecipeError
from edgeft.recipe import Recipe
from edgeft.recipe_reader import key_paths, read_recipe, recipe_from_text
from edgeft.sections import Ftype, TaskMetric

GOOD = """\
name: demo
data: {train: train.jsonl, validation: valid.jsonl, test: test.jsonl}
train: {learning_rate: 2e-4}
"""


def problems(text: str, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        recipe_from_text(text, Path("r.yaml"), overrides)
    return str(caught.value).splitlines()


# Values of the YAML 1.2 core schema, https://yaml.org/spec/1.2.2/#103-core-schema
@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e-4", 2e-4), ("1E5", 1e5), (".5", 0.5), ("5.", 5.0), ("-1.5e+3", -1500.0),
        ("-.inf", float("-inf")), ("2024-01-01", "2024-01-01"),
        ("012", 12), ("0o14", 12), ("0xff", 255), ("-7", -7), ("+7", 7), ("1_000", "1_000"), ("1:30", "1:30"),
        ("true", True), ("False", False), ("no", "no"), ("yes", "yes"), ("on", "on"), ("Off", "Off"),
        ("~", None), ("null", None), ("", None), ("'12'", "12"), ('"true"', "true"),
        ("[1, a, 2e1]", [1, "a", 20.0]), ("{a: {b: no}}", {"a": {"b": "no"}}),
        ("{a: &x [1], b: *x}", {"a": [1], "b": [1]}),
    ],
)  # fmt: skip
def test_core_schema(text: str, value: object) -> None:
    document = yaml12.parse(f"key: {text}")
    assert document.problems == []
    assert document.data == {"key": value}
    assert type(document.data["key"]) is type(value)


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("a: 1\nb: 2\na: 3", 3, "given twice (first on line 1)"),
        ("a:\n  b: 1\n  b: 2", 3, "given twice (first on line 2)"),
        ("a: [1\nb: 2", 2, "not valid YAML"),
        ("a: !!python/object:os.system x", 1, "is not supported"),
        ("a: !!binary aGk=", 1, "is not supported"),
        ("1: a", 1, "a key must be text"),
        ("? [a]\n: b", 1, "a key must be text"),
        ("a: &x [*x]", 1, "an anchor that contains itself"),
        ("a: !!int x", 1, "'x' is not a number"),
        ("a: \x07", 1, "not valid YAML"),
        ("a: 1\n---\nb: 2", 2, "not valid YAML"),
        pytest.param("a: " + "[" * 5000, 1, "nested too deeply", marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_bad_yaml(text: str, line: int, what: str) -> None:
    found = yaml12.parse(text).problems
    assert [problem.line for problem in found] == [line]
    assert what in found[0].what


def test_an_alias_bomb_is_refused() -> None:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
    for before, name in zip("abcdefgh", "bcdefghi", strict=True):
        lines.append(f"{name}: &{name} [{', '.join(['*' + before] * 10)}]")
    found = yaml12.parse("\n".join(lines)).problems
    assert [problem.what for problem in found] == ["more than 100000 values; is this a recipe?"]


# recipe text after GOOD (or instead of it), what must be said
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sed: 3", "r.yaml:4: sed: unknown key; did you mean seed?; known keys: name, seed, model"),
        ("batch_tokens: 3", "batch_tokens: unknown key; did you mean train.batch_tokens?"),
        ("merge: {dtype: fp16}", "r.yaml:4: merge.dtype: must be 'float32', 'bfloat16' or 'float16'"),
        ("export:\n  gguf:\n    - ftype: q4_k_m", "r.yaml:6: export.gguf.0.ftype: must be"),
        ("export: {gguf: [{ftype: q4_k_m}]}", "not the text 'q4_k_m'; did you mean Q4_K_M?"),
        ("export: {gguf: []}", "export.gguf: must be a list of at least 1"),
        ("export: {gguf: [{ftype: F16}, {ftype: F16}]}", "export: gguf lists an ftype twice"),
        ("export: {onnx: [{dtype: int3}]}", "not the text 'int3'"),
        ("export: {onnx: [{dtype: int4, block_size: 20}]}", "block_size: must be"),
        ("export: {onnx: [{dtype: int4}, {dtype: int4, accuracy_level: 1}]}", "export: onnx lists a folder twice"),
        ("export: {onnx: [{dtype: int4, target_bytes: 9}]}", "target_bytes plans the mix of dtype auto"),
        ("export: {onnx: [{dtype: int4}], ship: fp16}", "ship: fp16 is not among the files of gguf"),
        ("export: {gguf: [{ftype: F16}], ship: Q8_0}", "ship: Q8_0 is not among the files of gguf (F16)"),
        ("bench: 5", "r.yaml:4: bench: must be a section (keys with values), not 5"),
        ("bench:", "bench: must be a section (keys with values), not empty (null)"),
        ("bench: {n_ctx: '12'}", "bench.n_ctx: must be a whole number, not the text '12'"),
        ("bench: {n_ctx: true}", "bench.n_ctx: must be a whole number, not true"),
        ("bench: {limit: 0}", "bench.limit: must be at least 1, not 0"),
        ("bench: {limit: 1.5}", "bench.limit: must be a whole number, not 1.5"),
        ("bench: {metrics: exact_match}", "bench.metrics: must be a list, not the text 'exact_match'"),
        ("bench: {metrics: [exact]}", "bench.metrics.0: must be 'exact_match'"),
        ("bench: {metrics: [json_schema_valid]}", "bench: json_schema_valid needs the key json_schema"),
        ("bench: {metrics: [out_of_scope_recall]}", "bench: out_of_scope_recall needs the key out_of_scope"),
        ("gate: {exact_match: '0.9'}", "r.yaml:4: gate.exact_match: '0.9' is not a budget"),
        ("gate:\n  kl_mean: '<= 1'\n  size_bytes: '<= 8ms'", "r.yaml:6: gate.size_bytes: '<= 8ms'"),
        ("name: store", "r.yaml:4: name: given twice"),
        ("gate: {size_bytes: '<= 1x baseline'}", "needs a baseline; name its file under gate.baseline"),
        ("gate: {exact_mach: '>= 0.9'}", "gate.exact_mach: unknown metric; did you mean exact_match?"),
        ("pretrain: {}", "`train` and `pretrain` cannot both be in one recipe"),
        ("seed: 1\nseed: 2", "r.yaml:5: seed: given twice (first on line 4)"),
        ("seed: -1", "r.yaml:4: seed: must be at least 0, not -1"),
        ("model: {base: '${UNSET_VAR}/x'}", "the environment variable UNSET_VAR is not set"),
    ],
)  # fmt: skip
def test_problems(text: str, expected: str) -> None:
    assert any(expected in line for line in problems(GOOD + text)), problems(GOOD + text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "r.yaml:1: the recipe is empty"),
        ("- a", "r.yaml:1: a recipe is a mapping"),
        ("name: x", "r.yaml:1: the section `train` (or `pretrain`) is missing"),
        ("name: x\ntrain: {}", "r.yaml:1: the section `data` is missing"),
        ("train: {}\ndata: {train: a, test: b}", "r.yaml:2: data: the key `validation` is missing"),
        ("train: {}\ndata: {train: a, test: b}", "r.yaml:1: the key `name` is missing"),
        ("name: store", "r.yaml:1: name: `store` is the folder all runs share"),
        ("name: Upper Case", "r.yaml:1: name: must be text that matches"),
        ("train: {learning_rate: fast}", "train.learning_rate: must be a number, not the text 'fast'"),
        ("train: {learning_rate: .nan}", "train.learning_rate: must be a finite number, not nan"),
        ("train: {num_train_epochs: no}", "train.num_train_epochs: must be a number, not the text 'no'"),
        ("train: {resume_from_checkpoint: no}", "must be true or false, not the text 'no'"),
        ("train: {lora: {target_modules: 5}}", "must be 'all-linear' or a list, not 5"),
    ],
)
def test_problems_of_incomplete_recipes(text: str, expected: str) -> None:
    assert any(expected in line for line in problems(text)), problems(text)


def test_questions_without_answers_need_a_teacher() -> None:
    assert "only the teacher of `distill` answers it" in problems(GOOD, "data.unlabelled=asked.jsonl")[0]


def test_all_problems_at_once_in_order_of_lines() -> None:
    found = problems("name: X\nsed: 1\ntrain:\n  lora: {r: 0}\n  metod: full\n")
    assert [line.split(": ")[0] + ": " + line.split(": ")[1] for line in found] == [
        "r.yaml:1: name",
        "r.yaml:1: the section `data` is missing",
        "r.yaml:2: sed",
        "r.yaml:4: train.lora.r",
        "r.yaml:5: train.metod",
    ]


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("train.learning_rate=1e-3", "train.learning_rate", 1e-3),
        ("train.lora.target_modules=[q_proj, v_proj]", "train.lora.target_modules", ["q_proj", "v_proj"]),
        ("export.gguf.0.ftype=BF16", "export.gguf.0.ftype", "BF16"),
        ("export.gguf.1.ftype=Q6_K", "export.gguf.1.ftype", "Q6_K"),
        ("gate.kl_mean=<= 0.02", "gate.kl_mean", "<= 0.02"),
        ("gate.exact_match=>= 0.9", "gate.exact_match", ">= 0.9"),
        ("model.chat_template=null", "model.chat_template", None),
        ("name=a.b", "name", "a.b"),
    ],
)
def test_overrides(override: str, path: str, value: object) -> None:
    recipe = recipe_from_text(GOOD + "export: {gguf: [{ftype: F16}]}\n", Path("r.yaml"), (override,))
    found = recipe.model_dump()
    for part in path.split("."):
        found = found[int(part) if part.isdecimal() else part]
    assert found == value


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.lora.r=x", "--set: train.lora.r: must be a whole number, not the text 'x'"),
        ("train.foo=1", "--set: train.foo: unknown key"),
        ("name.x=1", "--set: name.x: name is the text 'demo', which has no keys"),
        (
            "export.gguf.5.ftype=F16",
            "--set: export.gguf.5.ftype: export.gguf is a list of 1; 5 is not",
        ),
        ("seed=[1", "--set: seed: not valid YAML"),
        ("seed", "--set: 'seed' is not of the form key.path=value"),
        ("a..b=1", "--set: 'a..b=1' is not of the form key.path=value"),
    ],
)
def test_bad_overrides(override: str, expected: str) -> None:
    assert problems(GOOD + "export: {gguf: [{ftype: F16}]}\n", override)[0].startswith(expected)


def test_unreadable_files(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9")
    for path, what in [
        (tmp_path / "none.yaml", "cannot read"),
        (tmp_path, "cannot read"),
        (tmp_path / "latin.yaml", "not UTF-8"),
    ]:
        with pytest.raises(RecipeError, match=what):
            read_recipe(path)


def test_paths_are_relative_to_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHERE", "/data")
    (tmp_path / "r.yaml").write_text(GOOD)
    recipe = read_recipe(tmp_path / "r.yaml")
    assert recipe.folder == tmp_path
    assert recipe.resolve("a/b") == tmp_path / "a/b"
    assert recipe.resolve("${WHERE}/b") == Path("/data/b")
    assert recipe.resolve("${NOWHERE_AT_ALL:-/default}/b") == Path("/default/b")
    with pytest.raises(RecipeError, match="NOWHERE_AT_ALL"):
        recipe.resolve("${NOWHERE_AT_ALL}/b")


@pytest.mark.parametrize(
    ("base", "name"),
    [
        ("edgeft/nano", "edgeft/nano"),
        ("../models/base", "base"),
        ("${WHERE}", "llama"),
        ("${NOWHERE_AT_ALL:-../models/base}", "base"),
    ],
)
def test_the_name_of_the_base_has_no_folders(base: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHERE", "/data/llama")
    recipe = recipe_from_text(GOOD, Path("r.yaml"))
    model = recipe.model.model_copy(update={"base": base})
    assert recipe.model_copy(update={"model": model}).base_name == name


def test_a_recipe_shown_is_a_recipe() -> None:
    recipe = recipe_from_text(GOOD, Path("r.yaml"))
    shown = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)
    assert recipe_from_text(shown, Path("r.yaml")).model_dump() == recipe.model_dump()


def test_the_schema_describes_every_key() -> None:
    schema = Recipe.model_json_schema()
    json.dumps(schema)
    for section in [schema, *schema["$defs"].values()]:
        for name, field in section["properties"].items():
            assert "description" in field or "$ref" in field, f"{section['title']}.{name} has no docstring"
        assert section["additionalProperties"] is False


DATA = "name: x\ndata: {train: a, validation: v, test: t}\n"


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        ("{objective: dpo}", "r.yaml:3: train: the objective dpo needs data.preference"),
        ("{stages: [{objective: text}, {objective: sft}]}", "train: the objective text needs data.text"),
        ("{stages: [{objective: sft}, {objective: classification}]}", "train.stages: classification stands alone"),
        ("{lora: {init_lora_weights: loftq}}", "train.lora.init_lora_weights: loftq needs train.method qlora"),
        ("{early_stopping_patience: 2}", "train.early_stopping_patience: needs train.metric_for_best_model"),
        ("{metric_for_best_model: exact_match}", "train.metric_for_best_model: exact_match needs train.eval_examples"),
        (
            "{metric_for_best_model: json_match}",
            "train.metric_for_best_model: json_match is not among train.eval_metrics",
        ),
    ],
)
def test_training_sections_that_do_not_fit(train: str, expected: str) -> None:
    found = problems(DATA + f"train: {train}\n")
    assert any(expected in line for line in found), found


def test_stages_inherit_from_train() -> None:
    text = DATA + "train: {learning_rate: 0.5, beta: 0.3, stages: [{learning_rate: 0.1}, {batch_tokens: 64}]}\n"
    first, second = recipe_from_text(text, Path("r.yaml")).train.phases()
    assert (first.learning_rate, first.beta, first.batch_tokens) == (0.1, 0.3, 8192)
    assert (second.learning_rate, second.beta, second.batch_tokens) == (0.5, 0.3, 64)


def test_every_key_is_read(repo_root: Path) -> None:
    """A key of the recipe that no code outside the recipe itself reads is a promise nobody keeps."""
    read, texts = {"ship", "stages"}, set()  # read through Export.shipped and Train.phases
    for source in (repo_root / "edgeft").rglob("*.py"):
        if source.name in ("recipe.py", "sections.py"):
            continue
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.Attribute):
                read.add(node.attr)
            elif isinstance(node, ast.Constant) and source.parent.name == "parity":
                texts.add(node.value)
    read |= {name for name in ("f16", "q8_0", "q4", "top1", "kl_mean") if name in texts}  # parity takes dicts
    unread = [path for path in key_paths() if path.split(".")[-1] not in read]
    assert unread == []


def fields_of(package: str, module: str, class_name: str) -> set[str]:
    """Annotated fields of a class in an installed package, read from its source (importing takes seconds)."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"{package} is not installed")
    tree = ast.parse((Path(spec.origin).parent / module).read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.name == class_name:
            return {
                item.target.id
                for item in node.body
                if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
            }
    raise AssertionError(f"{package} has no {class_name}")


OUR_TRAIN_KEYS = {
    *(
        "method",
        "objective",
        "stages",
        "lora",
        "batch_tokens",
        "micro_batch_tokens",
        "torch_dtype",
        "num_threads",
        "memory_budget",
    ),
    *("micro_batch_tokens", "hyperparameters", "eval_examples", "eval_metrics", "fused_lora"),
    "early_stopping_patience",  # of transformers' EarlyStoppingCallback
    "beta",  # of TRL's DPOConfig and ORPOConfig, which is no dependency
}


def test_names_exist_upstream() -> None:
    keys = set(key_paths())
    lora = {path.removeprefix("train.lora.") for path in keys if path.startswith("train.lora.")}
    assert lora <= fields_of("peft", "tuners/lora/config.py", "LoraConfig")
    train = {path.split(".")[1] for path in keys if path.startswith("train.")} - OUR_TRAIN_KEYS
    assert train <= fields_of("transformers", "training_args.py", "TrainingArguments")


def test_task_metrics_are_the_ones_bench_knows() -> None:
    assert TaskMetric.__args__ == TASK_METRICS


def test_ftypes_exist_upstream() -> None:
    gguf = pytest.importorskip("gguf")
    known = {name.removeprefix("MOSTLY_").removeprefix("ALL_") for name in gguf.LlamaFileType.__members__}
    assert set(Ftype.__args__) <= known
