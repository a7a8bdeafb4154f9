"""Vectors of GGUF encoders: transformers and sentence-transformers' formula for pooling are the oracle."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from edgeft.console import silent_log
from edgeft.errors import ContextOverflow, RuntimeFault
from edgeft.runtime import Model, load
from tests.tiny_models import make_model

TEXTS = ["turn on the light in the kitchen", "stop the music", "lamp"]
POOLINGS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "pooling_mode_mean_tokens": lambda tokens: tokens.mean(0),
    "pooling_mode_cls_token": lambda tokens: tokens[0],
    "pooling_mode_lasttoken": lambda tokens: tokens[-1],
}


def make_encoder(folder: Path, pooling: str | None) -> Path:
    """A GGUF file of a tiny BERT in `folder`, pooled so."""
    from edgeft.export.gguf import write_gguf

    make_model(folder, "bert")
    if pooling is not None:
        modules = [
            {"path": "", "type": "sentence_transformers.models.Transformer"},
            {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        ]
        (folder / "modules.json").write_text(json.dumps(modules))
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text(json.dumps({pooling: True}))
    write_gguf(folder, folder / "model.gguf", ftype="F32", name="tiny", provenance={}, log=silent_log())
    return folder / "model.gguf"


@pytest.mark.parametrize("pooling", POOLINGS)
def test_vectors_are_those_of_transformers(tmp_path: Path, pooling: str) -> None:
    from transformers import AutoModel, AutoTokenizer

    with load(make_encoder(tmp_path, pooling), n_threads=1, n_ctx=64) as model:
        raw, unit = model.embed(TEXTS, normalize=False), model.embed(TEXTS)
        with pytest.raises(ContextOverflow, match="do not fit the context of 64"):
            model.embed(["turn " * 80])
    tokenizer, theirs = AutoTokenizer.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path).eval()
    for text, ours, of_length_one in zip(TEXTS, raw, unit, strict=True):
        with torch.inference_mode():
            tokens = theirs(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        expected = POOLINGS[pooling](tokens).numpy()
        np.testing.assert_allclose(ours, expected, atol=5e-3)
        np.testing.assert_allclose(of_length_one, expected / np.linalg.norm(expected), atol=5e-3)


def test_a_file_without_pooling_has_no_vectors(tmp_path: Path, either: Model) -> None:
    encoder = load(make_encoder(tmp_path, None), n_threads=1, n_ctx=32)
    for model in (encoder, either):
        with pytest.raises(RuntimeFault, match="embed with an encoder"):
            model.embed(TEXTS)
    encoder.close()


def test_no_texts_have_no_vectors(tmp_path: Path) -> None:
    with load(make_encoder(tmp_path, "pooling_mode_mean_tokens"), n_threads=1, n_ctx=32) as model:
        assert len(model.embed([])) == 0
    with pytest.raises(RuntimeFault, match="closed"):
        model.embed(TEXTS)
