"""The eval callback: what llama.cpp shows of itself is what the file and transformers say."""

import ctypes
from pathlib import Path

import gguf
import numpy as np
import pytest

from edgeft.errors import RuntimeFault
from edgeft.runtime import llama_eval
from edgeft.runtime.llama_eval import Node, WatchedLlama

IDS = [7, 300, 12, 55, 200, 9, 3, 41, 90, 90]


@pytest.fixture(scope="module")
def model(model_file: Path) -> WatchedLlama:
    return WatchedLlama(model_file, n_ctx=64, n_threads=1)


def captured(model: WatchedLlama, names: set[str], ids: list[int] = IDS) -> dict[str, np.ndarray]:
    seen: dict[str, np.ndarray] = {}
    model.watch(ids, lambda node: node.name in names, lambda node: seen.update({node.name: node.array()}))
    return seen


def test_embeddings_are_the_rows_of_the_file(model: WatchedLlama, model_file: Path) -> None:
    tensors = {tensor.name: tensor.data for tensor in gguf.GGUFReader(model_file).tensors}
    rows: list[np.ndarray] = []
    model.watch(IDS, lambda node: node.op == "GET_ROWS", lambda node: rows.append(node.array()))
    np.testing.assert_array_equal(rows[0][0, 0], tensors["token_embd.weight"][IDS])


def test_layer_outputs_are_those_of_transformers(model: WatchedLlama, model_folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(model_folder)
    with torch.inference_mode():
        output = reference(torch.tensor([IDS]), output_hidden_states=True)
    seen = captured(model, {"l_out-0", "result_output"})
    np.testing.assert_allclose(seen["l_out-0"][0, 0], output.hidden_states[1][0].numpy(), atol=5e-3)
    np.testing.assert_allclose(seen["result_output"][0, 0], output.logits[0].numpy(), atol=2e-2)


def test_products_name_their_weight_and_show_their_input(model: WatchedLlama, model_file: Path) -> None:
    """Each product, computed again in float64 from the weight in the file and the input that was shown."""
    tensors = {tensor.name: tensor.data for tensor in gguf.GGUFReader(model_file).tensors}
    errors: dict[str, float] = {}

    def take(node: Node) -> None:
        weight, inputs = node.sources()[:2]
        expected = inputs.array()[0, 0].astype(np.float64) @ tensors[weight.name].astype(np.float64).T
        errors[weight.name] = float(np.abs(node.array()[0, 0] - expected).max() / np.abs(expected).max())

    model.watch(IDS, lambda node: node.op == "MUL_MAT" and node.sources()[0].name.startswith("blk."), take)
    matrices = {name for name, data in tensors.items() if name.startswith("blk.") and data.ndim == 2}
    assert set(errors) == matrices
    assert max(errors.values()) < 1e-5


def test_a_long_sequence_runs_in_pieces(model: WatchedLlama, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = captured(model, {"l_out-1"})["l_out-1"]
    monkeypatch.setattr(llama_eval, "OUTPUT_FLOATS", 4 * model.n_vocab)
    pieces: list[np.ndarray] = []
    model.watch(IDS, lambda node: node.name == "l_out-1", lambda node: pieces.append(node.array()[0, 0]))
    assert [len(piece) for piece in pieces] == [4, 4, 2]
    np.testing.assert_allclose(np.concatenate(pieces), whole[0, 0], atol=1e-4)


@pytest.mark.parametrize("which", ["wants", "takes"])
def test_an_exception_ends_the_run_and_the_model_goes_on(model: WatchedLlama, which: str) -> None:
    def fail(node: Node) -> bool:
        raise ZeroDivisionError(node.name)

    wants, takes = (fail, print) if which == "wants" else (lambda node: node.name == "l_out-0", fail)
    with pytest.raises(ZeroDivisionError, match="l_out-0" if which == "takes" else None):
        model.watch(IDS, wants, takes)
    assert set(captured(model, {"l_out-0"})) == {"l_out-0"}


def test_other_types_are_refused(model: WatchedLlama) -> None:
    tokens: list[np.ndarray] = []

    def take(node: Node) -> None:
        with pytest.raises(RuntimeFault, match="cannot be read"):
            node.sources()[1].array()
        tokens.append(node.sources()[1].indices())

    model.watch(IDS, lambda node: node.op == "GET_ROWS" and not tokens, take)
    assert tokens[0].reshape(-1).tolist() == IDS


def test_another_layout_is_refused(model_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Longer(ctypes.Structure):
        _fields_ = (*llama_eval._Tensor._fields_, ("more", ctypes.c_int64))

    monkeypatch.setattr(llama_eval, "_Tensor", Longer)
    llama_eval.self_test.cache_clear()
    with pytest.raises(RuntimeFault, match=r"is not the library edgeft knows: its tensors have 336 bytes"):
        WatchedLlama(model_file, n_ctx=64, n_threads=1)
    monkeypatch.undo()
    llama_eval.self_test.cache_clear()
    llama_eval.self_test()


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        ("name", "src", "sources"),
        ("op", "flags", "operation"),
        ("ne", "nb", "shape"),
        ("view_src", "extra", "view"),
        ("data", "buffer", "data"),
        ("type", "op", "type"),
    ],
)
def test_moved_fields_are_noticed(one: str, other: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A structure of the right size in which two fields have changed places."""
    fields = list(llama_eval._Tensor._fields_)
    names = [name for name, *_ in fields]
    i, j = names.index(one), names.index(other)
    fields[i], fields[j] = fields[j], fields[i]

    class Moved(ctypes.Structure):
        pass

    pointers = {"src": ctypes.POINTER(Moved) * 10, "view_src": ctypes.POINTER(Moved)}
    Moved._fields_ = [(name, pointers.get(name, kind)) for name, kind in fields]
    monkeypatch.setattr(llama_eval, "_Tensor", Moved)
    llama_eval._ggml.cache_clear()
    with pytest.raises(RuntimeFault, match=f"edgeft knows: the {said} of a known tensor stands elsewhere"):
        llama_eval.self_test.__wrapped__()
    monkeypatch.undo()
    llama_eval._ggml.cache_clear()
