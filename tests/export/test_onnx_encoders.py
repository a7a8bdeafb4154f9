"""ONNX encoders against transformers' logits and vectors, and their integers against the definitions in float64."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import transformers

from edgeft.console import silent_log
from edgeft.errors import DataError, ModelError
from edgeft.export.onnx.encoders import EncoderSettings, export_encoder
from edgeft.export.onnx.int8_columns import quantize_columns
from edgeft.runtime.encoder import EncoderModel
from edgeft.runtime.int8_pairs import find_overflow
from edgeft.runtime.onnx_file import check_onnx
from edgeft.runtime.ort import onnxruntime
from tests.tiny_encoder import KINDS, WORDS, word_tokenizer

TASKS = {
    "text-classification": "ForSequenceClassification",
    "token-classification": "ForTokenClassification",
    "feature-extraction": "Model",
}
OTHER_ORTS = [path for path in os.environ.get("EDGEFT_ONNXRUNTIMES", "").split(os.pathsep) if path]
"""Folders with other versions of onnxruntime."""
OPTIMUM_PYTHON = os.environ.get("OPTIMUM_PYTHON")
"""An interpreter with optimum-onnx, which needs transformers before 4.58."""
TRANSFORMERS_JS = os.environ.get("TRANSFORMERS_JS")
"""A folder whose node_modules holds @huggingface/transformers."""
TEXTS = ["turn on the light", "play some music now please in the kitchen", "stop", "lamp off in bedroom now"]
# id, changes to the tiny configuration
VARIANTS: list[tuple[str, str, dict[str, Any]]] = [
    ("bert", "bert", {}),
    ("bert-relu", "bert", {"hidden_act": "relu"}),
    ("bert-tanh-gelu", "bert", {"hidden_act": "gelu_pytorch_tanh"}),
    ("distilbert", "distilbert", {}),
    ("roberta", "roberta", {"pad_token_id": 1}),
    ("xlm-roberta", "roberta", {"pad_token_id": 0}),
    ("modernbert", "modernbert", {}),
    ("modernbert-mean-biases", "modernbert", {"classifier_pooling": "mean", "norm_bias": True, "mlp_bias": True,
                                              "attention_bias": True, "classifier_bias": True}),
]  # fmt: skip


def make_model(path: Path, kind: str, task: str, changes: dict[str, Any], classes: int = 5) -> Any:
    """Write a tiny random model with the head of `task`; returns it in evaluation mode."""
    name, fields = KINDS[kind]
    if changes.get("pad_token_id") == 0 and kind == "roberta":
        name = "XLMRoberta"
    shared = {"vocab_size": 4 + len(WORDS), "pad_token_id": 0, "initializer_range": 0.2, "num_labels": classes}
    config = getattr(transformers, f"{name}Config")(**shared | fields | changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(transformers, f"{name}{TASKS[task]}")(config)
        for parameter in model.parameters():  # norms and biases are born as ones and zeros
            parameter.data.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(path)
    word_tokenizer().save_pretrained(path)
    return model.eval()


def batch(n_texts: int = 4, *, left: bool = False, pad: int = 0) -> dict[str, np.ndarray]:
    tokenizer = word_tokenizer()
    rows = [tokenizer(text).input_ids for text in TEXTS[:n_texts]]
    width = max(map(len, rows))
    ids, mask = np.full((len(rows), width), pad, np.int64), np.zeros((len(rows), width), np.int64)
    for row, tokens in enumerate(rows):
        where = slice(width - len(tokens), width) if left else slice(0, len(tokens))
        ids[row, where], mask[row, where] = tokens, 1
    return {"input_ids": ids, "attention_mask": mask}


def run(folder: Path, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
    names = {each.name for each in session.get_inputs()}
    feed = feed | ({"token_type_ids": np.zeros_like(feed["input_ids"])} if "token_type_ids" in names else {})
    outputs = [each.name for each in session.get_outputs()]
    return dict(zip(outputs, session.run(outputs, {name: feed[name] for name in names}), strict=True))


def reference(model: Any, feed: dict[str, np.ndarray]) -> np.ndarray:
    with torch.no_grad():
        return np.asarray(model(**{name: torch.from_numpy(array) for name, array in feed.items()})[0])


def export(model_dir: Path, out: Path, dtype: Any = "fp32", **options: Any) -> dict[str, Any]:
    return export_encoder(model_dir, out, settings=EncoderSettings(dtype), log=silent_log(), **options)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(("kind", "changes"), [each[1:] for each in VARIANTS], ids=[each[0] for each in VARIANTS])
def test_every_architecture_and_task_gives_transformers_numbers(
    kind: str, changes: dict[str, Any], task: str, tmp_path: Path
) -> None:
    model = make_model(tmp_path / "model", kind, task, changes)
    record = export(tmp_path / "model", tmp_path / "out")
    assert (record["task"], record["bytes"]) == (task, (tmp_path / "out" / "model.onnx").stat().st_size)
    pad = changes.get("pad_token_id", 0)
    for feed in (batch(pad=pad), batch(left=True, pad=pad), batch(1, pad=pad)):
        ours, theirs = next(iter(run(tmp_path / "out", feed).values())), reference(model, feed)
        mask = feed["attention_mask"] == 1
        real = mask if ours.ndim == 3 else mask[:, 0]  # what a head reads of padding means nothing
        np.testing.assert_allclose(ours[real], theirs[real], atol=3e-5)


@pytest.mark.parametrize(
    ("pooling", "normalize"), [({"pooling_mode_mean_tokens": True}, True), ({"pooling_mode": "cls"}, False),
                               ({"pooling_mode": "lasttoken"}, True)],
)  # fmt: skip
def test_sentence_embeddings_are_pooled_in_the_graph(pooling: dict[str, Any], normalize: bool, tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", "bert", "feature-extraction", {})
    steps = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
    kinds = [{"idx": at, "path": f"{at}_{name}", "type": f"sentence_transformers.models.{name}"}
             for at, name in enumerate(steps)]  # fmt: skip
    (tmp_path / "model" / "modules.json").write_text(json.dumps(kinds))
    (tmp_path / "model" / "1_Pooling").mkdir()
    (tmp_path / "model" / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    export(tmp_path / "model", tmp_path / "out")
    for left in (False, True):
        feed = batch(left=left)
        hidden, mask = reference(model, feed).astype(np.float64), feed["attention_mask"]
        last = mask.shape[1] - 1 - mask[:, ::-1].argmax(axis=1)
        expected = {
            "mean": (hidden * mask[:, :, None]).sum(axis=1) / mask.sum(axis=1, keepdims=True),
            "cls": hidden[:, 0],
            "lasttoken": hidden[np.arange(len(hidden)), last],
        }[pooling.get("pooling_mode", "mean")]
        if normalize:
            expected /= np.linalg.norm(expected, axis=1, keepdims=True)
        np.testing.assert_allclose(run(tmp_path / "out", feed)["sentence_embedding"], expected, atol=1e-5)


def test_columns_are_rounded_to_the_nearest_code() -> None:
    weight = np.random.default_rng(0).normal(size=(64, 9)).astype(np.float32)
    weight[:, 3] = 0
    codes, scales = quantize_columns(weight)
    exact = weight.astype(np.float64) / np.where(weight.any(axis=0), np.abs(weight).max(axis=0) / 127.0, 1.0)
    assert np.abs(codes - exact).max() <= 0.5 + 1e-5
    assert set(np.abs(codes).max(axis=0)) == {0, 127}
    np.testing.assert_allclose(scales * 127, np.where(weight.any(axis=0), np.abs(weight).max(axis=0), 127), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["int8", "int8_static"])
def test_an_integer_product_is_its_definition(dtype: Any, tmp_path: Path) -> None:
    """One product of the graph as onnxruntime computes it, against float64 arithmetic on its codes."""
    make_model(tmp_path / "model", "bert", "text-classification", {})
    export(tmp_path / "model", tmp_path / "out", dtype, texts=TEXTS)
    model = onnx.load(tmp_path / "out" / "model.onnx")
    tensors = {each.name: onnx.numpy_helper.to_array(each) for each in model.graph.initializer}
    name, into = "encoder.layer.1.output.dense", "encoder.layer.1.intermediate.dense.activation.output"
    for value in (into, f"{name}.output"):
        model.graph.output.append(onnx.helper.make_tensor_value_info(value, onnx.TensorProto.FLOAT, None))
    onnx.save(model, tmp_path / "out" / "model.onnx")
    values = run(tmp_path / "out", batch())
    x = values[into] * tensors.get(f"{name}.scaling", np.float32(1))
    if dtype == "int8":
        low, high = min(x.min(), 0.0), max(x.max(), 0.0)
        scale = np.float32(np.float32(high - low) / np.float32(255))
        zero_point = np.rint(np.clip(-low / scale, 0, 255))
    else:
        scale, zero_point = tensors[f"{name}.input.scale"], float(tensors[f"{name}.input.zero_point"])
    rounded = np.clip(np.rint(x / scale) + zero_point, 0, 255).astype(np.float64) - zero_point
    exact = rounded @ tensors[f"{name}.weight"].astype(np.float64) * float(scale) * tensors[f"{name}.scale"]
    if dtype == "int8":
        exact = exact + tensors[f"{name}.bias"]
    np.testing.assert_allclose(values[f"{name}.output"], exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("dtype", "limit"), [("fp16", 0.02), ("int8", 0.15), ("int8_static", 0.2)])
@pytest.mark.parametrize("kind", ["bert", "modernbert"])
def test_smaller_types_stay_near_torch(kind: str, dtype: Any, limit: float, tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", kind, "text-classification", {})
    record = export(tmp_path / "model", tmp_path / "out", dtype, texts=TEXTS)
    ours, theirs = run(tmp_path / "out", batch())["logits"], reference(model, batch())
    assert np.abs(ours - theirs).max() < limit * np.abs(theirs).max()
    assert record["dtype"] == dtype
    assert ours.dtype == np.float32


@pytest.mark.parametrize("dtype", ["int8", "int8_static"])
@pytest.mark.parametrize("reduce_range", [True, False])
def test_only_weights_in_8_bits_throughout_need_more_than_16(dtype: Any, reduce_range: bool, tmp_path: Path) -> None:
    make_model(tmp_path / "model", "bert", "text-classification", {})
    settings = EncoderSettings(dtype, reduce_range=reduce_range)
    export_encoder(tmp_path / "model", tmp_path / "out", settings=settings, texts=TEXTS, log=silent_log())
    checked = check_onnx(tmp_path / "out" / "model.onnx")
    assert (find_overflow(checked) is None) is reduce_range
    assert checked.metadata["edgeft.int8_processors"] == ("any" if reduce_range else "vnni")


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    make_model(tmp_path / "model", "bert", "text-classification", {})
    for dtype in ("fp32", "int8", "int8_static"):
        files = []
        for at, texts in enumerate((TEXTS, TEXTS[::-1])):  # the order of the texts makes no difference
            export(tmp_path / "model", tmp_path / f"{dtype}-{at}", dtype, texts=texts)
            files.append((tmp_path / f"{dtype}-{at}" / "model.onnx").read_bytes())
        assert files[0] == files[1]


def test_static_int8_depends_on_nothing_but_the_text(tmp_path: Path) -> None:
    make_model(tmp_path / "model", "bert", "text-classification", {})
    export(tmp_path / "model", tmp_path / "out", "int8_static", texts=TEXTS)
    together = run(tmp_path / "out", batch())["logits"]
    alone = run(tmp_path / "out", batch(1))["logits"]
    np.testing.assert_allclose(together[:1], alone, atol=1e-5)


def test_weights_of_more_than_two_gigabytes_lie_beside_the_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(tmp_path / "model", "bert", "text-classification", {})
    monkeypatch.setattr("edgeft.export.onnx.encoders.LARGEST_FILE_BYTES", 1000)
    record = export(tmp_path / "model", tmp_path / "out")
    assert record["bytes"] > (tmp_path / "out" / "model.onnx.data").stat().st_size > 10_000
    np.testing.assert_allclose(run(tmp_path / "out", batch())["logits"], reference(model, batch()), atol=3e-5)


@pytest.mark.parametrize(
    ("dtype", "stem"),
    [("fp32", "model"), ("fp16", "model_fp16"), ("int8", "model_quantized"), ("int8_static", "model_quantized")],
)
@pytest.mark.parametrize("large", [False, True])
def test_transformers_js_files_have_its_names(
    dtype: Any, stem: str, large: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And hold the same graph; weights that are too many have its name as well, and config.json says so."""
    make_model(tmp_path / "model", "bert", "text-classification", {})
    if large:
        monkeypatch.setattr("edgeft.export.onnx.encoders.LARGEST_FILE_BYTES", 1000)
    plain, js = (
        export_encoder(
            tmp_path / "model",
            tmp_path / layout,
            settings=EncoderSettings(dtype, layout=layout),
            texts=TEXTS,
            log=silent_log(),
        )
        for layout in ("plain", "transformers.js")
    )
    made = tmp_path / "transformers.js"
    bytes_there = sum(path.stat().st_size for path in made.glob("onnx/*"))
    assert js == {**plain, "file": f"onnx/{stem}.onnx", "bytes": bytes_there}
    assert {path.name for path in made.glob("onnx/*")} == {f"{stem}.onnx"} | ({f"{stem}.onnx_data"} if large else set())
    config = json.loads((made / "config.json").read_text())
    beside = {"use_external_data_format": {f"{stem}.onnx": 1}}
    assert config.get("transformers.js_config") == (beside if large else None)
    with EncoderModel(tmp_path / "plain", n_threads=1) as a, EncoderModel(made, n_threads=1) as b:
        assert [each.probabilities for each in a.classify(TEXTS)] == [each.probabilities for each in b.classify(TEXTS)]


@pytest.mark.slow
@pytest.mark.skipif(not TRANSFORMERS_JS, reason="set TRANSFORMERS_JS")
@pytest.mark.parametrize(("dtype", "theirs"), [("fp32", "fp32"), ("int8", "q8")])
def test_transformers_js_loads_the_folder(dtype: Any, theirs: str, tmp_path: Path) -> None:
    make_model(tmp_path / "model", "bert", "text-classification", {})
    settings = EncoderSettings(dtype, layout="transformers.js")
    export_encoder(tmp_path / "model", tmp_path / "out", settings=settings, log=silent_log())
    script = (
        "import { pipeline, env } from '@huggingface/transformers';\n"
        "env.allowRemoteModels = false; env.localModelPath = '/';\n"
        "const [, , folder, dtype, texts] = process.argv;\n"
        "const classify = await pipeline('text-classification', folder, { dtype });\n"
        "console.log(JSON.stringify(await classify(JSON.parse(texts), { top_k: null })));\n"
    )
    assert TRANSFORMERS_JS is not None
    program = Path(TRANSFORMERS_JS) / "classify.mjs"
    program.write_text(script)
    command = ["node", str(program), str(tmp_path / "out"), theirs, json.dumps(TEXTS)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    with EncoderModel(tmp_path / "out", n_threads=1) as model:
        ours = [model.classify([text])[0].probabilities for text in TEXTS]
    for answer, expected in zip(json.loads(done.stdout.splitlines()[-1]), ours, strict=True):
        found = {each["label"]: each["score"] for each in answer}
        assert found == pytest.approx(expected, abs=1e-5 if dtype == "fp32" else 0.02)


@pytest.mark.slow
@pytest.mark.parametrize("site", OTHER_ORTS or [pytest.param("", marks=pytest.mark.skip("set EDGEFT_ONNXRUNTIMES"))])
def test_other_onnxruntimes_give_the_same_numbers(site: str, tmp_path: Path) -> None:
    script = (
        "import sys, numpy, onnxruntime\n"
        "session = onnxruntime.InferenceSession(sys.argv[1], providers=['CPUExecutionProvider'])\n"
        "feed = dict(numpy.load(sys.argv[2]))\nfeed = {each.name: feed[each.name] for each in session.get_inputs()}\n"
        "numpy.save(sys.argv[3], session.run(None, feed)[0])\n"
    )
    feed = batch()
    np.savez(tmp_path / "feed.npz", **feed, token_type_ids=np.zeros_like(feed["input_ids"]))
    for kind in KINDS:
        make_model(tmp_path / kind, kind, "text-classification", {})
        for dtype in ("fp32", "int8", "int8_static", "fp16"):
            out = tmp_path / f"{kind}-{dtype}"
            export(tmp_path / kind, out, dtype, texts=TEXTS)
            arguments = [str(path) for path in (out / "model.onnx", tmp_path / "feed.npz", out / "logits.npy")]
            environment = os.environ | {"PYTHONPATH": site}
            subprocess.run([sys.executable, "-c", script, *arguments], check=True, env=environment)
            ours = run(out, feed)["logits"]
            np.testing.assert_allclose(ours, np.load(out / "logits.npy"), atol=0.02 if dtype == "fp16" else 1e-4)


@pytest.mark.slow
@pytest.mark.skipif(not OPTIMUM_PYTHON, reason="set OPTIMUM_PYTHON")
@pytest.mark.parametrize("task", TASKS)
def test_optimum_loads_the_folder(task: str, tmp_path: Path) -> None:
    script = (
        "import sys, numpy, torch, optimum.onnxruntime as optimum\n"
        "model = getattr(optimum, sys.argv[1]).from_pretrained(sys.argv[2])\n"
        "feed = {name: torch.from_numpy(array) for name, array in numpy.load(sys.argv[3]).items()}\n"
        "numpy.save(sys.argv[4], model(**feed)[0].numpy())\n"
    )
    name = {"feature-extraction": "ORTModelForFeatureExtraction"}.get(task, f"ORTModel{TASKS[task]}")
    assert OPTIMUM_PYTHON is not None
    feed = batch()
    np.savez(tmp_path / "feed.npz", **feed)
    for kind in ("bert", "distilbert", "roberta"):
        model = make_model(tmp_path / kind, kind, task, {"pad_token_id": 0})
        export(tmp_path / kind, tmp_path / f"{kind}-onnx")
        paths = (tmp_path / f"{kind}-onnx", tmp_path / "feed.npz", tmp_path / f"{kind}.npy")
        subprocess.run([OPTIMUM_PYTHON, "-c", script, name, *map(str, paths)], check=True)
        theirs, real = np.load(paths[2]), feed["attention_mask"] == 1
        expected = reference(model, feed)
        where = real if expected.ndim == 3 else slice(None)
        np.testing.assert_allclose(theirs[where], expected[where], atol=3e-5)


def test_what_cannot_be_exported_is_refused(tmp_path: Path) -> None:
    make_model(tmp_path / "bert", "bert", "feature-extraction", {})
    make_model(tmp_path / "tagger", "bert", "token-classification", {})
    decoder = shutil.copytree(tmp_path / "bert", tmp_path / "llama")
    change(decoder, model_type="llama", architectures=["LlamaForCausalLM"])
    narrow = shutil.copytree(tmp_path / "bert", tmp_path / "narrow")
    change(narrow, intermediate_size=64)
    swish = shutil.copytree(tmp_path / "bert", tmp_path / "swish")
    change(swish, hidden_act="quick_gelu")
    cases: list[tuple[str, dict[str, Any], type[Exception], str]] = [
        ("llama", {}, ModelError, "'llama' .* is no encoder .* supported: bert, .*; decoders are exported"),
        ("bert", {"task": "text-classification"}, ModelError, "no classification head; train one"),
        ("narrow", {}, ModelError, r"intermediate.dense.weight has shape \(48, 32\); config.json says \(64, 32\)"),
        ("swish", {}, ModelError, "'quick_gelu' cannot be exported to ONNX; known: gelu,"),
        ("tagger", {"task": "text-classification"}, ModelError, "pooler.dense.weight is missing"),
        ("bert", {"dtype": "int8_static"}, DataError, "needs texts to calibrate on"),
        ("absent", {}, ModelError, "no such model folder"),
    ]
    for name, options, error, said in cases:
        with pytest.raises(error, match=said):
            export(tmp_path / name, tmp_path / "out", **options)
    assert not (tmp_path / "out" / "model.onnx").exists()


def change(folder: Path, **fields: Any) -> None:
    """Other values in the folder's config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
