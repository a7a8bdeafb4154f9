"""Faults planted in ONNX folders: bisect finds each, and names the node, the tensor or the provider."""

import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from edgeft.console import silent_log
from edgeft.export.onnx.export import export_onnx
from edgeft.export.onnx.rotary import DISAGREEMENT
from edgeft.export.onnx.settings import OnnxSettings
from edgeft.parity.bisect_onnx import bisect_onnx
from edgeft.parity.finding import Finding
from edgeft.parity.forms import Prompt
from tests.lively import make_lively_llama
from tests.onnx_graphs import write_decoder
from tests.tiny_models import make_model

WORDS = ("turn on the kitchen light", "what is the weather like tomorrow?")
PROMPTS = [Prompt(({"role": "user", "content": text},)) for text in WORDS]
CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
FIRST = "run.n_total"
"""The first node of a graph."""
QKV = "blk.1.attn_q.weight+blk.1.attn_k.weight+blk.1.attn_v.weight"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`model`, and its honest export in folders called after their types."""
    root = tmp_path_factory.mktemp("onnx")
    make_lively_llama(root / "model")
    export(root / "model", root, "fp32", "fp16", "int8", "int4")
    return root


def export(model: Path, out: Path, *dtypes: Any, **options: Any) -> None:
    entries = {dtype: OnnxSettings(dtype=dtype, **options) for dtype in dtypes}
    export_onnx(model, out, entries=entries, provenance={}, log=silent_log(), n_threads=1)


def found(model: Path, path: Path, **options: Any) -> Finding | None:
    return bisect_onnx(model, path, PROMPTS, silent_log(), n_threads=1, **options)


class Edited:
    """A graph that is changed where it lies."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "model.onnx"
        self.model = onnx.load(self.path, load_external_data=False)
        self.nodes = {node.name: node for node in self.model.graph.node}

    def save(self) -> None:
        onnx.save(self.model, self.path)

    def take(self, node: str, at: int, value: str) -> None:
        """Give `node` another input."""
        assert value not in self.nodes[node].input
        self.nodes[node].input[at] = value

    def add(self, op: str, inputs: list[str], output: str, before: str, **attributes: Any) -> str:
        at = list(self.nodes).index(before)
        self.model.graph.node.insert(at, helper.make_node(op, inputs, [output], name=output, **attributes))
        self.nodes = {node.name: node for node in self.model.graph.node}
        return output

    def replace(self, value: str, other: str) -> None:
        """Every node but those `other` is made by takes it for `value`, in branches too."""
        at = [node.output[0] for node in self.model.graph.node].index(other)
        self._replace(self.model.graph.node[at + 1 :], value, other)

    def _replace(self, nodes: Iterable[onnx.NodeProto], value: str, other: str) -> None:
        for node in nodes:
            node.input[:] = [other if put == value else put for put in node.input]
            for attribute in node.attribute:
                self._replace(attribute.g.node, value, other)

    def constant(self, name: str, value: np.ndarray) -> str:
        self.model.graph.initializer.append(numpy_helper.from_array(value, name))
        return name

    def change_data(self, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
        """Write other bytes for a tensor of the data file."""
        tensor = next(tensor for tensor in self.model.graph.initializer if tensor.name == name)
        entries = {entry.key: entry.value for entry in tensor.external_data}
        changed = np.ascontiguousarray(change(numpy_helper.to_array(tensor, str(self.path.parent))))
        with (self.path.parent / entries["location"]).open("r+b") as file:
            file.seek(int(entries["offset"]))
            file.write(changed.tobytes())


def counted_positions(graph: Edited) -> None:
    """Rotation by 0, 1, 2, … instead of position_ids."""
    zeros = graph.add("Sub", ["position_ids", "position_ids"], "zeros", FIRST)
    length = graph.add("Squeeze", [graph.add("Shape", ["position_ids"], "width", FIRST, start=1)], "length", FIRST)
    steps = graph.add("Range", ["zero", length, "one"], "steps", FIRST)
    graph.replace("position_ids", graph.add("Add", [zeros, steps], "counted", FIRST))


def ignored_mask(graph: Edited) -> None:
    """A mask of ones, whatever is given."""
    graph.add("Equal", ["attention_mask", "attention_mask"], "same", FIRST)
    graph.replace("attention_mask", graph.add("Cast", ["same"], "ones", FIRST, to=onnx.TensorProto.INT64))


def forgotten_past(graph: Edited) -> None:
    """seqlens_k of the tokens of this run alone."""
    here = graph.add("Sub", [graph.add("Shape", ["input_ids"], "n_now", FIRST, start=1), "one"], "here", FIRST)
    here = graph.add("Cast", [here], "here32", FIRST, to=onnx.TensorProto.INT32)
    for layer in range(2):
        graph.take(f"layers.{layer}.attention", 5, here)


def short_table(graph: Edited) -> None:
    """A table of angles of 100 positions, read by place, as other exporters write it."""
    frequencies = next(each for each in graph.model.graph.initializer if each.name == "rope.0.frequencies")
    angles = np.outer(np.arange(100), numpy_helper.to_array(frequencies)).astype(np.float32)
    for at, function in ((7, np.cos), (8, np.sin)):
        graph.constant(f"{function.__name__}_cache", function(angles))
        for layer in range(2):
            graph.take(f"layers.{layer}.attention", at, f"{function.__name__}_cache")


def transposed_blocks(graph: Edited) -> None:
    graph.change_data(f"{QKV}.codes", lambda codes: codes.transpose(1, 0, 2))


@dataclass(frozen=True)
class Fault:
    kind: str
    name: str
    said: str
    plant: Callable[[Edited], None]
    dtype: str = "fp32"


FAULTS = {
    "position ids": Fault(
        "node", "layers.0.attention", "is not turned by the angles of its position 37"
        "; with other position_ids than 0, 1, 2, …: are they followed?", counted_positions,
    ),
    "mask": Fault(
        "node", f"one_token.else.{DISAGREEMENT}", "with padding in front: is attention_mask followed?", ignored_mask
    ),
    "past length": Fault(
        "node", "layers.0.attention", "seqlens_k says that the last tokens of its sequences stand at [11]; by "
        "attention_mask it is [23]; behind tokens of an earlier run: is the length of the past right?", forgotten_past
    ),
    "transposed int4 blocks": Fault(
        "tensor", QKV, "its blocks are transposed: (block, row), where MatMulNBits wants (row, block)",
        transposed_blocks, "int4",
    ),
    "rope cache length": Fault(
        "tensor", "cos_cache", "has the angles of 100 positions, the context 256; layers.0.attention reads",
        short_table,
    ),
}  # fmt: skip
OTHERS = {
    "swapped nibbles": Fault(
        "tensor", QKV, "the two codes of each byte are swapped",
        lambda graph: graph.change_data(f"{QKV}.codes", lambda codes: codes << 4 | codes >> 4), "int4",
    ),
    "a row of a float matrix": Fault(
        "tensor", "output.weight", "1 of 384 rows are not those of lm_head.weight: row 7",
        lambda graph: graph.change_data("output.weight", lambda w: np.where(np.arange(len(w))[:, None] == 7, 1, w)),
    ),
    "scales of int8": Fault(
        "tensor", QKV, "rounding explains", lambda graph: graph.change_data(f"{QKV}.scales", lambda s: s * 1.3), "int8"
    ),
    "norm epsilon": Fault(
        "node", "layers.0.attention.qkv", "layer 0: the input of its attention leaves the reference at token",
        lambda graph: graph.nodes["blk.0.attn_norm"].attribute[1].CopyFrom(helper.make_attribute("epsilon", 0.5)),
    ),
    "total length": Fault(
        "node", "layers.1.attention", "total_sequence_length must be positive, got 0",
        lambda graph: graph.take("layers.1.attention", 6, graph.constant("nothing", np.array([0], np.int32))),
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", [*FAULTS, *OTHERS])
def test_a_fault_is_found_and_named(fault: str, root: Path, tmp_path: Path) -> None:
    wanted = (FAULTS | OTHERS)[fault]
    shutil.copytree(root / wanted.dtype, tmp_path / "faulty")
    graph = Edited(tmp_path / "faulty")
    wanted.plant(graph)
    graph.save()
    finding = found(root / "model", tmp_path / "faulty")
    assert finding is not None
    assert (finding.kind, finding.name) == (wanted.kind, wanted.name), finding.message
    assert wanted.said in finding.message


def test_swapped_providers_are_found_and_named(root: Path) -> None:
    """onnxruntime without CUDA passes over it; with the processor wanted first all is well."""
    finding = found(root / "model", root / "fp32", providers=[CUDA, CPU])
    assert finding is not None
    assert (finding.kind, finding.name) == ("provider", CPU)
    assert f"meant to run on {CUDA}, but runs on {CPU}" in finding.message
    assert found(root / "model", root / "fp32", providers=[CPU]) is None


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "int8", "int4"])
def test_honest_folders_have_no_fault(dtype: str, root: Path) -> None:
    assert found(root / "model", root / dtype) is None


@pytest.mark.parametrize("kind", ["gpt2", "phi3", "gemma2", "qwen3_moe"])
def test_honest_folders_of_other_layouts_have_no_fault(kind: str, tmp_path: Path) -> None:
    export(make_model(tmp_path / "model", kind), tmp_path, "fp32")
    assert found(tmp_path / "model", tmp_path / "fp32") is None


def test_a_graph_of_another_exporter(root: Path, tmp_path: Path) -> None:
    """Its weights have other names; what it computes is compared where it comes out."""
    graph = Edited(write_decoder(root / "model", tmp_path / "faulty"))
    weight = next(each for each in graph.model.graph.initializer if each.name == "layers.1.mlp.up_proj")
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight)[::-1], weight.name))
    graph.save()
    finding = found(root / "model", tmp_path / "faulty")
    assert finding is not None
    assert (finding.kind, finding.name) == ("node", "logits")


def test_other_prompts_are_found_first(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "fp32", tmp_path / "faulty")
    template = tmp_path / "faulty" / "chat_template.jinja"
    template.write_text(template.read_text().replace("assistant\\n", "assistant \\n"))
    finding = found(root / "model", tmp_path / "faulty")
    assert finding is not None
    assert finding.kind == "template"


def test_a_model_without_a_template_is_asked_plain_texts(root: Path, tmp_path: Path) -> None:
    model = shutil.copytree(root / "model", tmp_path / "model")
    (model / "chat_template.jinja").unlink()
    export(model, tmp_path, "fp32")
    assert found(model, tmp_path / "fp32") is None
