"""Packed matrices: their bytes are the grid's, and the graph computes with the values those bytes mean."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from edgeft.console import silent_log
from edgeft.errors import ModelError, UsageError
from edgeft.export.onnx.export import export_onnx
from edgeft.export.onnx.settings import OnnxSettings
from edgeft.export.onnx.source_grids import onnx_source_grids
from edgeft.quant.grids.onnx import MatMulNBits, dequantize, quantize
from tests.export.onnx.sessions import greedy, open_graph, prompts, torch_logits
from tests.tiny_models import make_model

GRIDS = [
    {"dtype": "int4"},
    {"dtype": "int4", "symmetric": False},
    {"dtype": "int4", "block_size": 64},
    {"dtype": "int4", "block_size": 128, "symmetric": False},
    {"dtype": "int8"},
    {"dtype": "int8", "symmetric": False},
    {"dtype": "int4", "head_dtype": "int8"},
    {"dtype": "int4", "head_dtype": "fp32"},
]
PACKED = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.fixture(scope="module", params=["smollm2", "qwen2"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"), request.param)


def export(folder: Path, out: Path, **settings: Any) -> Path:
    [record] = export_onnx(folder, out, entries=[OnnxSettings(**settings)], provenance={}, log=silent_log())
    return out / record["file"]


def on_the_grid(folder: Path, settings: OnnxSettings) -> Any:
    """The model in torch with every matrix rounded as the settings say, and float32 left."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    matrices = {name: module.weight for name, module in model.named_modules() if name.endswith(PACKED)}
    matrices["token_embd.weight"] = model.get_input_embeddings().weight
    if not model.config.tie_word_embeddings:
        matrices["output.weight"] = model.get_output_embeddings().weight
    for experts in (module for name, module in model.named_modules() if name.endswith(".experts")):
        for weights in (experts.gate_up_proj, experts.down_proj):
            matrices |= {f"{id(weights)}.{number}.ffn_down_exps": weight for number, weight in enumerate(weights)}
    for name, weight in matrices.items():
        grid = settings.grid(name, weight.shape[1])
        if grid is not None:
            rounded = dequantize(quantize(weight.detach().numpy(), grid), grid, weight.shape[1])
            weight.data.copy_(torch.from_numpy(rounded))
    return model


@pytest.mark.parametrize("settings", GRIDS, ids=str)
def test_the_graph_computes_with_the_values_of_the_grid(folder: Path, tmp_path: Path, settings: Any) -> None:
    """With accuracy level 1, which multiplies in float32."""
    session = open_graph(export(folder, tmp_path, accuracy_level=1, **settings))
    model = on_the_grid(folder, OnnxSettings(**settings))
    ids, mask = prompts(model.config.vocab_size)
    _, logits = greedy(session, ids, mask, n_tokens=1)
    assert np.abs(logits - torch_logits(model, ids, mask))[mask.astype(bool)].max() < 2e-4


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("settings", [{"dtype": "fp32"}, *GRIDS[:3]], ids=str)
def test_experts_compute_with_the_values_of_the_grid(tmp_path: Path, settings: Any, normalized: bool) -> None:
    """With shares of the experts used that add up to one, and shares of all."""
    folder = make_model(tmp_path / "model", "qwen3_moe")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"norm_topk_prob": normalized}))
    session = open_graph(export(folder, tmp_path, accuracy_level=1, **settings))
    model = on_the_grid(folder, OnnxSettings(**settings))
    ids, mask = prompts(model.config.vocab_size)
    _, logits = greedy(session, ids, mask, n_tokens=1)
    assert np.abs(logits - torch_logits(model, ids, mask))[mask.astype(bool)].max() < 2e-4


def test_what_experts_cannot_be(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model", "qwen3_moe")
    with pytest.raises(ModelError, match=r"ffn_gate_up_exps.*no experts in float16 on processors; export int4"):
        export(folder, tmp_path / "half", dtype="fp16")
    with pytest.raises(UsageError, match=r"min_ort 1.23: experts need onnxruntime 1.31"):
        export(folder, tmp_path / "old", min_ort="1.23")
    with pytest.raises(ModelError, match=r"ffn_gate_up_exps.weight is made of 2 tensors"):
        onnx_source_grids(folder, OnnxSettings("int4"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"decoder_sparse_step": 2}))
    with pytest.raises(ModelError, match=r"decoder_sparse_step"):
        export(folder, tmp_path / "sparse")


@pytest.mark.parametrize(("dtype", "most"), [("int4", 1e-2), ("int8", 1e-2)])
def test_multiplying_in_int8_stays_near(folder: Path, tmp_path: Path, dtype: Any, most: float) -> None:
    """KL in nats a token, against float64 probabilities of the values of the grid."""
    session = open_graph(export(folder, tmp_path, dtype=dtype))
    model = on_the_grid(folder, OnnxSettings(dtype)).double()
    ids, mask = prompts(model.config.vocab_size)
    _, logits = greedy(session, ids, mask, n_tokens=1)
    exact = torch.from_numpy(torch_logits(model, ids, mask)).log_softmax(-1)
    ours = torch.from_numpy(logits).double().log_softmax(-1)
    divergence = (exact.exp() * (exact - ours)).sum(-1)[torch.from_numpy(mask).bool()]
    assert 0 <= float(divergence.mean()) < most


def test_bytes_are_the_grids_and_stored_once(folder: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    path = export(folder, tmp_path, dtype="int4", block_size=32)
    model = onnx.load(path)
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    weights, grid = load_file(folder / "model.safetensors"), MatMulNBits(4, 32)
    parts = [weights[f"model.layers.1.self_attn.{part}_proj.weight"] for part in "qkv"]
    packed = quantize(np.concatenate(parts), grid)
    name = "+".join(f"blk.1.attn_{part}.weight" for part in "qkv")
    assert np.array_equal(tensors[f"{name}.codes"], packed.codes)
    assert np.array_equal(tensors[f"{name}.scales"], packed.scales)
    assert np.array_equal(
        tensors["token_embd.weight.codes"], quantize(weights["model.embed_tokens.weight"], grid).codes
    )
    places = [
        {entry.key: entry.value for entry in tensor.external_data}["offset"]
        for tensor in onnx.load(path, load_external_data=False).graph.initializer
        if tensor.name in ("token_embd.weight.codes", "token_embd.weight.rows")
    ]
    assert len(places) == 2
    assert len(set(places)) == 1


@pytest.mark.parametrize("settings", [{"dtype": "fp16"}, {"dtype": "int4", "accuracy_level": 1}], ids=str)
def test_half_precision_stays_near(folder: Path, tmp_path: Path, settings: Any) -> None:
    model = on_the_grid(folder, OnnxSettings(**settings))
    ids, mask = prompts(model.config.vocab_size)
    exact = torch.from_numpy(torch_logits(model, ids, mask)).double().log_softmax(-1)
    _, logits = greedy(open_graph(export(folder, tmp_path, **settings, activations="float16")), ids, mask, n_tokens=1)
    assert logits.dtype == np.float16
    ours = torch.from_numpy(logits).double().log_softmax(-1)
    divergence = (exact.exp() * (exact - ours)).sum(-1)[torch.from_numpy(mask).bool()]
    assert float(divergence.mean()) < 1e-3
