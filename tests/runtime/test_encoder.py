"""Encoder folders in onnxruntime, against transformers' own pipelines."""

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgeft.console import silent_log
from edgeft.errors import ContextOverflow, ModelError, RuntimeFault
from edgeft.export.onnx.encoders import EncoderSettings, export_encoder
from edgeft.runtime import load
from edgeft.runtime.encoder import EncoderModel
from edgeft.runtime.encoder_folder import Confidence, is_encoder
from tests.export.test_onnx_encoders import TEXTS, make_model
from tests.tiny_encoder import word_tokenizer

MANY = [" ".join([text] * n) for n in (1, 3, 2) for text in TEXTS] * 4


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    return _exported(tmp_path_factory.mktemp("classifier"), "text-classification")


def _exported(folder: Path, task: str, kind: str = "bert", **changes: Any) -> tuple[Path, Any]:
    model = make_model(folder / "model", kind, task, changes)
    export_encoder(folder / "model", folder / "out", settings=EncoderSettings("fp32"), log=silent_log())
    return folder / "out", model


def _logits(model: Any, text: str) -> np.ndarray:
    with torch.no_grad():
        ids = word_tokenizer()(text, truncation=True, return_tensors="pt")
        return np.asarray(model(**{name: ids[name] for name in ("input_ids", "attention_mask")})[0][0], np.float64)


def test_a_batch_of_any_lengths_gives_what_torch_gives_one_by_one(classifier: tuple[Path, Any]) -> None:
    folder, model = classifier
    with EncoderModel(folder, n_threads=1) as ours:
        found = ours.logits(MANY)
        np.testing.assert_allclose(found, [_logits(model, text) for text in MANY], atol=3e-5)
        labels = [answer.label for answer in ours.classify(MANY)]
        assert labels == [f"LABEL_{place}" for place in found.argmax(axis=1)]
        assert ours.logits([]).shape == (0, 5)
        assert ours.count_tokens(["turn on", "stop " * 99]) == [4, 32]


def test_probabilities_are_the_softmax_at_the_folders_temperature(classifier: tuple[Path, Any], tmp_path: Path) -> None:
    folder = shutil.copytree(classifier[0], tmp_path / "out")
    logits = _logits(classifier[1], TEXTS[0])
    for temperature, threshold in ((1.0, 0.0), (2.5, 0.0), (2.5, 0.99)):
        (folder / "confidence.json").write_text(json.dumps(Confidence(temperature, threshold).to_json()))
        expected = np.exp(logits / temperature) / np.exp(logits / temperature).sum()
        with EncoderModel(folder) as ours:
            (answer,) = ours.classify(TEXTS[:1])
            given = [answer.probabilities[f"LABEL_{place}"] for place in range(5)]
            np.testing.assert_allclose(given, expected, atol=1e-5)
            assert list(answer.probabilities.values()) == sorted(given, reverse=True)
            assert answer.label == (None if threshold > expected.max() else f"LABEL_{expected.argmax()}")
            (other,) = ours.classify(TEXTS[:1], temperature=1.0, threshold=0.0)
            assert other.label is not None


def test_vectors_are_those_of_the_pooled_graph(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", "modernbert", "feature-extraction", {})
    (tmp_path / "model" / "modules.json").write_text(
        json.dumps([{"path": "", "type": "x.Transformer"}, {"path": "1_Pooling", "type": "x.Pooling"}])
    )
    (tmp_path / "model" / "1_Pooling").mkdir()
    (tmp_path / "model" / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    export_encoder(tmp_path / "model", tmp_path / "out", settings=EncoderSettings("fp32"), log=silent_log())
    with EncoderModel(tmp_path / "out") as ours:
        expected = np.stack([_logits(model, text).mean(axis=0) for text in TEXTS])
        np.testing.assert_allclose(ours.embed(TEXTS, normalize=False), expected, atol=1e-5)
        unit = expected / np.linalg.norm(expected, axis=1, keepdims=True)
        np.testing.assert_allclose(ours.embed(TEXTS), unit, atol=1e-5)


def test_tokens_are_labelled_where_they_stand(tmp_path: Path) -> None:
    folder, model = _exported(tmp_path, "token-classification", "distilbert")
    with EncoderModel(folder) as ours:
        for text, tags in zip(TEXTS, ours.tag(TEXTS), strict=True):
            assert [text[tag.start : tag.end] for tag in tags] == text.split()
            logits = _logits(model, text)[1:-1]
            assert [tag.label for tag in tags] == [f"LABEL_{place}" for place in logits.argmax(axis=1)]
            shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
            np.testing.assert_allclose([tag.probability for tag in tags], shares.max(axis=1), atol=1e-5)


def test_a_long_text_is_cut_or_refused(classifier: tuple[Path, Any]) -> None:
    folder, model = classifier
    text = "turn on the light " * 30
    with EncoderModel(folder) as ours:
        assert ours.n_ctx == 32  # the tokenizer's limit; the graph has 512 positions
        np.testing.assert_allclose(ours.logits([text])[0], _logits(model, text), atol=3e-5)
    with EncoderModel(folder, n_ctx=6) as ours:
        assert ours.count_tokens([text]) == [6]
    with (
        EncoderModel(folder, on_too_long="error") as ours,
        pytest.raises(ContextOverflow, match="text 1 has 122 tokens, the model takes 32; shorten it, or open the"),
    ):
        ours.classify(["stop", text])


def test_threads_share_a_model(classifier: tuple[Path, Any]) -> None:
    with EncoderModel(classifier[0]) as ours:
        expected = ours.logits(MANY)
        found: list[np.ndarray] = []
        threads = [threading.Thread(target=lambda: found.append(ours.logits(MANY))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(found) == 4
    for each in found:
        np.testing.assert_array_equal(each, expected)


def test_what_makes_no_sense_is_refused(classifier: tuple[Path, Any], tmp_path: Path) -> None:
    folder = classifier[0]
    with EncoderModel(folder) as ours:
        for call, said in (
            (lambda: ours.embed(TEXTS), "no sentence_embedding; export a sentence-transformers folder"),
            (lambda: ours.tag(TEXTS), "no classes of tokens"),
            (lambda: ours.classify("one text"), "give a list of texts"),
        ):
            with pytest.raises(ModelError, match=said):
                call()
    with pytest.raises(RuntimeFault, match="was closed"):
        ours.classify(TEXTS)
    several = shutil.copytree(folder, tmp_path / "several")
    config = json.loads((several / "config.json").read_text())
    (several / "config.json").write_text(json.dumps(config | {"problem_type": "multi_label_classification"}))
    with pytest.raises(ModelError, match="several labels may hold"):
        EncoderModel(several).classify(TEXTS)
    (several / "confidence.json").write_text('{"temperature": 0, "threshold": 0}')
    with pytest.raises(ModelError, match="needs a temperature above 0"):
        EncoderModel(several)
    (several / "confidence.json").write_text("{}")
    with pytest.raises(ModelError, match=r"confidence.json: cannot be read"):
        EncoderModel(several)


def test_folders_of_encoders_are_told_from_those_of_decoders(classifier: tuple[Path, Any], tmp_path: Path) -> None:
    assert is_encoder(classifier[0])
    for fields, expected in (
        ({"model_type": "bert", "architectures": ["BertModel"]}, True),
        ({"model_type": "bert", "is_decoder": True}, False),
        ({"model_type": "new", "architectures": ["NewForTokenClassification"]}, True),
        ({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}, False),
    ):
        (tmp_path / "config.json").write_text(json.dumps(fields))
        assert is_encoder(tmp_path) == expected
    assert not is_encoder(tmp_path / "absent")
    with load(classifier[0]) as opened:
        assert isinstance(opened, EncoderModel)
