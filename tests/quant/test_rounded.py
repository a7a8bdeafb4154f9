"""Models that train through rounding: gradients against torch's own, their weights against the file made of them."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch.func import functional_call

from edgeft.console import silent_log
from edgeft.errors import ModelError, TrainingError, UsageError
from edgeft.export.folder import open_checkpoint, read_folder
from edgeft.export.gguf.architectures.layout import lay_out
from edgeft.export.gguf.grids import source_grids
from edgeft.export.gguf.read import open_gguf
from edgeft.export.gguf.write import write_gguf
from edgeft.export.onnx.export import export_onnx
from edgeft.export.onnx.settings import OnnxSettings
from edgeft.export.onnx.source_grids import onnx_source_grids
from edgeft.quant.calibration import Calibration
from edgeft.quant.collect import collect_imatrix
from edgeft.quant.ggml import GgmlType
from edgeft.quant.grids.fake import round_rows
from edgeft.quant.grids.onnx import MatMulNBits, Packed, dequantize
from edgeft.quant.imatrix import Imatrix
from edgeft.quant.rounded import LowRank, RoundedModel, Rounding
from edgeft.stages._grids import roundings_of
from edgeft.training.models import load_model
from tests.tiny import make_tiny_llama
from tests.tiny_models import DECODERS, make_model

IDS = torch.tensor([[5, 9, 70, 30, 5, 200, 17, 33]])
LINEAR, EMBEDDING = "model.layers.1.mlp.down_proj.weight", "model.embed_tokens.weight"
TURNED = "model.layers.0.self_attn.q_proj.weight"
GRIDS = {
    LINEAR: Rounding(GgmlType.Q4_0),
    EMBEDDING: Rounding(MatMulNBits(4, 32, False)),
    TURNED: Rounding(GgmlType.Q5_0, importance=np.linspace(0.1, 2, 64, dtype=np.float32), transposed=True),
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of 256, for k-quants."""
    fields = {"hidden_size": 256, "intermediate_size": 256, "initializer_range": 0.05}
    return make_tiny_llama(tmp_path_factory.mktemp("wide"), **fields)


def loss_of(model: Any) -> torch.Tensor:
    loss: torch.Tensor = model(IDS, labels=IDS, use_cache=False).loss
    return loss


def straight_through(weight: torch.Tensor, rounding: Rounding) -> torch.Tensor:
    """The rounded values with the gradient of `weight`, as the formula stands in the papers."""
    matrix = weight.T if rounding.transposed else weight
    values = torch.from_numpy(round_rows(matrix.detach().numpy(), rounding.grid, rounding.importance))
    return weight + ((values.T if rounding.transposed else values) - weight).detach()


def test_gradients_of_whole_matrices_are_those_of_the_formula(tiny: Path) -> None:
    """The embedding is the head as well: both gradients add up in what it is rounded from."""
    plain = load_model(tiny).train()
    masters = {name: plain.get_parameter(name).detach().clone().requires_grad_() for name in GRIDS}
    loss = _loss_with(plain, {name: straight_through(masters[name], GRIDS[name]) for name in GRIDS})
    loss.backward()
    rounded = RoundedModel(load_model(tiny), GRIDS).train()
    half = loss_of(rounded.rounded()) / 2
    half.backward()
    (loss_of(rounded.rounded()) / 2).backward()  # a second micro-batch adds to the first
    assert torch.allclose(2 * half, loss)
    for name, master in masters.items():
        found = rounded.get_parameter(f"masters.{name.replace('.', '/')}.weight").grad
        torch.testing.assert_close(found, master.grad)
    trained = sum(p.numel() for p in rounded.parameters() if p.requires_grad)
    assert trained == sum(p.numel() for p in plain.parameters())


def test_gradients_of_adapters_are_those_of_the_formula(tiny: Path) -> None:
    plain, rounded = load_model(tiny), RoundedModel(load_model(tiny), GRIDS, lora=LowRank(4, 8.0))
    parameters = list(rounded.parameters())
    assert [p.shape for p in parameters] == [(4, 128), (64, 4), (4, 64), (64, 4)]  # not the embedding, nor norms
    for b in parameters[1::2]:
        torch.nn.init.normal_(b, std=0.1)
    rounded.changed()
    free = [parameter.detach().clone().requires_grad_() for parameter in parameters]
    weights = {name: plain.get_parameter(name).detach() for name in GRIDS}
    weights[LINEAR] = weights[LINEAR] + 8 / 4 * free[1] @ free[0]
    weights[TURNED] = weights[TURNED] + 8 / 4 * free[3] @ free[2]
    loss = _loss_with(plain, {name: straight_through(weight, GRIDS[name]) for name, weight in weights.items()})
    loss.backward()
    found = loss_of(rounded.rounded())
    found.backward()
    torch.testing.assert_close(found, loss)
    for parameter, expected in zip(parameters, free, strict=True):
        torch.testing.assert_close(parameter.grad, expected.grad)


def _loss_with(model: Any, weights: dict[str, torch.Tensor]) -> torch.Tensor:
    output = functional_call(model, weights, (IDS,), {"labels": IDS, "use_cache": False})
    loss: torch.Tensor = output.loss
    return loss


def test_what_an_optimizer_changed_is_rounded_anew(tiny: Path) -> None:
    rounded = RoundedModel(load_model(tiny), GRIDS)
    optimizer = torch.optim.AdamW(rounded.parameters(), lr=0.05, fused=True)
    optimizer.register_step_post_hook(rounded.changed)
    loss_of(rounded.rounded()).backward()
    before = rounded.rounded().get_parameter(LINEAR).clone()
    optimizer.step()
    after = rounded.rounded().get_parameter(LINEAR)
    master = rounded.get_parameter(f"masters.{LINEAR.replace('.', '/')}.weight")
    assert not torch.equal(before, after)
    np.testing.assert_array_equal(after.detach().numpy(), round_rows(master.detach().numpy(), GgmlType.Q4_0))


def test_weights_that_are_not_finite_are_refused(tiny: Path) -> None:
    rounded = RoundedModel(load_model(tiny), GRIDS)
    with torch.no_grad():
        next(rounded.parameters())[0, 0] = torch.inf
    with pytest.raises(TrainingError, match=r"down_proj.*not finite.*lower recover.learning_rate"):
        rounded.rounded()


FILES: list[tuple[str, bool, dict[str, GgmlType] | None, LowRank | None]] = [
    ("Q4_0", False, None, None),
    ("Q4_0", True, None, LowRank(4, 8.0)),
    ("Q8_0", False, None, None),
    ("Q6_K", False, None, None),
    ("Q4_K_M", False, None, None),
    ("Q4_K_M", True, None, LowRank(4, 8.0)),
    ("Q4_K_M", True, {"blk.0.ffn_up.weight": GgmlType.Q8_0, "token_embd.weight": GgmlType.Q5_K}, None),
]


@pytest.mark.parametrize(("ftype", "weighed", "types", "lora"), FILES)
def test_a_files_tensors_are_what_training_saw(
    wide: Path, tmp_path: Path, ftype: str, weighed: bool, types: dict[str, GgmlType] | None, lora: LowRank | None
) -> None:
    imatrix = importance_of(wide) if weighed else None
    check_file(wide, tmp_path, ftype, imatrix=imatrix, types=types, lora=lora)


@pytest.mark.parametrize("kind", [kind for kind in DECODERS if kind != "qwen3_moe" and "rope scaled" not in kind])
def test_every_architectures_grids_are_those_of_its_file(kind: str, tmp_path: Path) -> None:
    """Reordered rows (Llama), transposed matrices (GPT-2), fused ones (Phi-3), and the types of short rows."""
    folder = make_model(tmp_path / "model", kind)
    check_file(folder, tmp_path, "Q4_K_M", imatrix=importance_of(folder), types=None, lora=None)


def test_stacks_of_experts_are_refused(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model", "qwen3_moe")
    layout = lay_out(read_folder(folder), open_checkpoint(folder))
    with pytest.raises(ModelError, match=r"ffn_gate_exps.weight is made of 4 tensors.*leave.*recover"):
        source_grids(layout, "Q4_0")


ONNX = [
    OnnxSettings("int4", 32),
    OnnxSettings("int4", 128, symmetric=False),
    OnnxSettings("int8", 32),
    OnnxSettings("int4", 32, head_dtype="int8"),
]


@pytest.mark.parametrize("settings", ONNX, ids=lambda settings: settings.name)
def test_a_graphs_matrices_are_what_training_saw(wide: Path, tmp_path: Path, settings: OnnxSettings) -> None:
    check_graph(wide, tmp_path, settings)


@pytest.mark.parametrize("kind", ["gpt2", "phi3"])
def test_graphs_of_transposed_and_fused_matrices(kind: str, tmp_path: Path) -> None:
    check_graph(make_model(tmp_path / "model", kind), tmp_path, OnnxSettings("int4", 32))


def test_graphs_in_float16_are_refused(wide: Path) -> None:
    with pytest.raises(UsageError, match=r"float16 graph cannot be trained for; take activations: float32"):
        onnx_source_grids(wide, OnnxSettings("int4", activations="float16"))


def check_graph(folder: Path, out: Path, settings: OnnxSettings) -> None:
    """As `check_file`, for the folder onnxruntime reads: codes, scales and zero points against the rounded weights."""
    model = load_model(folder)
    grids = onnx_source_grids(folder, settings)
    seen = train_one_step(folder, RoundedModel(model, roundings_of(model, grids)), out / "recovered")
    (record,) = export_onnx(out / "recovered", out, entries=[settings], provenance={}, log=silent_log(), n_threads=1)
    tensors = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(out / record["file"]).graph.initializer}
    sources = {rule.name: rule.sources for rule in lay_out(read_folder(folder), open_checkpoint(folder)).rules}
    n_read = 0
    for name in [name.removesuffix(".codes") for name in tensors if name.endswith(".codes")]:
        parts = [source for part in name.split("+") for source in sources[part]]
        expected = np.concatenate([seen[source].T if grids[source].transposed else seen[source] for source in parts])
        grid = grids[parts[0]].grid
        assert isinstance(grid, MatMulNBits)
        packed = Packed(tensors[f"{name}.codes"], tensors[f"{name}.scales"], tensors.get(f"{name}.zero_points"))
        np.testing.assert_array_equal(dequantize(packed, grid, expected.shape[1]), expected, err_msg=name)
        n_read += len(parts)
    assert n_read == len(grids) > 8


def importance_of(folder: Path) -> Imatrix:
    layout = lay_out(read_folder(folder), open_checkpoint(folder))
    calibration = Calibration((tuple(range(5, 69)),), ("ids",))
    sources = {rule.name: rule.sources for rule in layout.rules}
    return collect_imatrix(load_model(folder), calibration, sources, chunk_size=64, log=silent_log())


def check_file(folder: Path, out: Path, ftype: str, *, lora: LowRank | None, **settings: Any) -> None:
    """One step of training; then the file written of the unrounded weights, read by ggml, against the rounded ones."""
    model = load_model(folder)
    layout = lay_out(read_folder(folder), open_checkpoint(folder))
    roundings = roundings_of(model, source_grids(layout, ftype, **settings))
    seen = train_one_step(folder, RoundedModel(model, roundings, lora=lora), out / "recovered")
    write_gguf(
        out / "recovered",
        out / "m.gguf",
        ftype=ftype,
        name="m",
        provenance={},
        log=silent_log(),
        n_threads=1,
        **settings,
    )
    file = open_gguf(out / "m.gguf")
    n_rounded = 0
    for rule in layout.rules:
        if rule.sources:
            expected = rule.change(*(seen[name] for name in rule.sources))
            np.testing.assert_array_equal(file.read(rule.name), expected.astype(np.float32), err_msg=rule.name)
            n_rounded += file.header.tensors[rule.name].type_name != "F32"
    assert n_rounded == len(roundings) > 8


def train_one_step(folder: Path, rounded: RoundedModel, out: Path) -> dict[str, np.ndarray]:
    """Write the model of `folder`, trained, to `out`, unrounded; returns its weights as they are rounded."""
    optimizer = torch.optim.AdamW(rounded.parameters(), lr=0.01)
    loss_of(rounded.rounded()).backward()
    optimizer.step()
    rounded.settle()
    seen = {name: p.detach().numpy().copy() for name, p in rounded.rounded().state_dict().items()}
    rounded.unround().save_pretrained(out)
    for path in folder.iterdir():
        if not (out / path.name).exists():
            (out / path.name).write_bytes(path.read_bytes())
    return seen
