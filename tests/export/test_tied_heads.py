"""A tied config whose checkpoint has a head: the embedding once more, or a head of its own."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from edgeft.errors import ModelError
from edgeft.export.folder import open_checkpoint, read_folder
from edgeft.export.gguf.architectures.layout import lay_out
from edgeft.export.gguf.read import open_gguf
from edgeft.export.onnx.export import lay_out_decoder
from tests.tiny_models import make_model

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def with_head(folder: Path, change: float, dtype: Any = np.float32) -> Path:
    """A tied model whose checkpoint holds a head, its embedding plus `change` in one place."""
    tensors = dict(load_file(folder / "model.safetensors"))
    head = tensors[EMBEDDING].astype(dtype)
    head[-1, -1] += dtype(change)
    save_file({**tensors, HEAD: head}, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma3", "smollm3"])
@pytest.mark.parametrize("change", [0.0, 0.25])
def test_a_head_of_its_own_is_written(kind: str, change: float, tmp_path: Path) -> None:
    folder = with_head(make_model(tmp_path / "model", kind, tie_word_embeddings=True), change)
    for layout in (lay_out(read_folder(folder), open_checkpoint(folder)), lay_out_decoder(read_folder(folder))[0]):
        heads = [rule for rule in layout.rules if rule.name == "output.weight"]
        assert bool(heads) == bool(change)
        assert all(rule.sources == (HEAD,) for rule in heads)


def test_the_file_holds_that_head(tmp_path: Path, write: Any) -> None:
    folder = with_head(make_model(tmp_path / "model", "llama", tie_word_embeddings=True), 0.25)
    file = open_gguf(write(folder, tmp_path / "model.gguf"))
    np.testing.assert_array_equal(file.read("output.weight"), load_file(folder / "model.safetensors")[HEAD])


def test_a_graph_that_always_ties_is_refused(tmp_path: Path) -> None:
    folder = with_head(make_model(tmp_path / "model", "gemma2", tie_word_embeddings=True), 0.25)
    with pytest.raises(ModelError, match="tie_word_embeddings False"):
        lay_out(read_folder(folder), open_checkpoint(folder))
