"""ONNX folders that are damaged, point outside, or are wanted elsewhere: `edgeft bench` says so and exits with 1."""

import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from edgeft.bench.backends import Setup
from edgeft.bench.file import BenchSettings, bench_file
from edgeft.bench.latency import LatencyPlan
from edgeft.console import silent_log
from edgeft.errors import EdgeftError, ModelError, RuntimeFault
from tests.onnx_graphs import write_decoder
from tests.tiny import make_tiny_llama

PLAN = LatencyPlan(synthetic=((8, 3),), repetitions=1, warmup=0, reloads=0, cold_loads=1)
SETTINGS = BenchSettings(n_ctx=32, n_threads=1, latency=PLAN)


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("onnx")
    return write_decoder(make_tiny_llama(root / "model"), root / "honest", data_file="weights.bin")


def cut_graph(folder: Path) -> None:
    path = folder / "model.onnx"
    path.write_bytes(path.read_bytes()[:-100])


def lose_weights(folder: Path) -> None:
    (folder / "weights.bin").unlink()


def point_outside(folder: Path) -> None:
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../honest/weights.bin"
    onnx.save(model, folder / "model.onnx")


def turn_a_matrix(folder: Path) -> None:
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    matrix = next(weight for weight in model.graph.initializer if weight.name == "layers.0.mlp.down_proj")
    matrix.dims[0], matrix.dims[1] = matrix.dims[1], matrix.dims[0]
    onnx.save(model, folder / "model.onnx")


@pytest.mark.parametrize(
    ("spoil", "error", "said"),
    [
        (cut_graph, ModelError, "incomplete ONNX file; export or copy it again"),
        (lose_weights, ModelError, "should be in weights.bin, which is not there"),
        (point_outside, ModelError, "lies outside the model's folder"),
        (turn_a_matrix, RuntimeFault, "onnxruntime refused the file"),
    ],
)
def test_folders_that_are_refused(
    honest: Path, tmp_path: Path, spoil: Callable[[Path], None], error: type[EdgeftError], said: str
) -> None:
    folder = tmp_path / "spoiled"
    shutil.copytree(honest, folder)
    spoil(folder)
    with pytest.raises(error, match=said) as raised:
        bench_file(folder, [], SETTINGS, with_roofline=False, log=silent_log())
    assert raised.value.exit_code == 1


def test_a_provider_that_is_not_here(honest: Path) -> None:
    setup = Setup(providers=("CUDAExecutionProvider",))
    with pytest.raises(RuntimeFault, match="has none of the execution providers CUDAExecutionProvider; available here"):
        bench_file(honest, [], SETTINGS, setup, with_roofline=False, log=silent_log())
