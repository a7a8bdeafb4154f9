"""The folder around a graph, what other loaders make of it, and what is refused."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgeft.console import silent_log
from edgeft.errors import ModelError, UsageError
from edgeft.export.onnx.export import export_onnx
from edgeft.export.onnx.settings import OnnxSettings
from tests.export.onnx.sessions import greedy, open_graph
from tests.tiny_models import make_model

PROMPT = np.array([[5, 9, 33, 70, 12, 44]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"), "smollm2")


def export(folder: Path, out: Path, *entries: OnnxSettings, **arguments: Any) -> list[dict[str, Any]]:
    return export_onnx(folder, out, entries=entries, provenance={"run": "one"}, log=silent_log(), **arguments)


def test_a_folder_for_each_entry_and_a_record_of_it(folder: Path, tmp_path: Path) -> None:
    records = export(folder, tmp_path, OnnxSettings("fp32"), OnnxSettings("int8", block_size=64, symmetric=False))
    assert [record["file"] for record in records] == ["fp32/model.onnx", "int8-64-asymmetric/model.onnx"]
    assert [record["min_ort"] for record in records] == ["1.20", "1.23"]
    made = tmp_path / "fp32"
    assert records[0]["bytes"] == sum((made / name).stat().st_size for name in ("model.onnx", "model.onnx.data"))
    copied = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert {path.name for path in made.iterdir()} == copied | {"model.onnx", "model.onnx.data", "genai_config.json"}
    # The class as loaders built on transformers 4 know it.
    assert json.loads((made / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"
    model = onnx.load(made / "model.onnx")
    assert (model.ir_version, model.opset_import[0].version) == (10, 21)
    assert {entry.key: entry.value for entry in model.metadata_props}["edgeft.run"] == "one"


def test_the_same_bytes_whatever_the_threads(folder: Path, tmp_path: Path) -> None:
    for n_threads in (1, 3):
        export(folder, tmp_path / str(n_threads), OnnxSettings("int4", symmetric=False), n_threads=n_threads)
    for name in ("model.onnx", "model.onnx.data"):
        one, three = (tmp_path / threads / "int4-32-asymmetric" / name for threads in "13")
        assert one.read_bytes() == three.read_bytes()


def test_bytes_are_those_of_the_weights(tmp_path: Path) -> None:
    """5 bits a weight of matrices for int4 in blocks of 32 with float32 scales, the tied embedding once."""
    wide = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4}
    folder = make_model(tmp_path / "model", "smollm2", **wide)
    [record] = export(folder, tmp_path, OnnxSettings("int4"))
    n_weights = sum(tensor.size for tensor in _weights(folder) if tensor.ndim > 1)
    assert (tmp_path / "int4-32/model.onnx.data").stat().st_size <= 1.05 * n_weights * 5 / 8
    assert record["bytes"] < 1.15 * n_weights * 5 / 8  # the graph of a model as small as this counts


def _weights(folder: Path) -> Any:
    from safetensors.numpy import load_file

    return load_file(folder / "model.safetensors").values()


def test_transformers_js_names(folder: Path, tmp_path: Path) -> None:
    [record] = export(folder, tmp_path, OnnxSettings("int4", layout="transformers.js"))
    made = tmp_path / "int4-32"
    assert record["file"] == "int4-32/onnx/model_q4.onnx"
    assert (made / "onnx/model_q4.onnx_data").is_file()
    config = json.loads((made / "config.json").read_text())
    assert config["transformers.js_config"] == {"use_external_data_format": {"model_q4.onnx": 1}}
    assert greedy(open_graph(tmp_path / record["file"]), PROMPT, np.ones_like(PROMPT), 4)[0].shape == (1, 4)


def test_genai_generates_the_same_tokens(folder: Path, tmp_path: Path) -> None:
    genai = pytest.importorskip("onnxruntime_genai")
    for settings in (OnnxSettings("fp32"), OnnxSettings("int4")):
        [record] = export(folder, tmp_path, settings)
        model = genai.Model(str((tmp_path / record["file"]).parent))
        parameters = genai.GeneratorParams(model)
        parameters.set_search_options(max_length=PROMPT.size + 64, do_sample=False)
        generator = genai.Generator(model, parameters)
        generator.append_tokens(PROMPT.astype(np.int32))
        while not generator.is_done():
            generator.generate_next_token()
        theirs = generator.get_sequence(0)[PROMPT.size :]
        ours, _ = greedy(open_graph(tmp_path / record["file"]), PROMPT, np.ones_like(PROMPT), len(theirs))
        assert len(theirs)
        assert np.array_equal(ours[0], theirs)


OTHERS = [path for path in os.environ.get("EDGEFT_ONNXRUNTIMES", "").split(os.pathsep) if path]
LOAD = """
import json, sys
from edgeft.runtime.ort import onnxruntime
from pathlib import Path
from tests.export.onnx.sessions import greedy, open_graph
import numpy as np
oldest = tuple(map(int, onnxruntime.__version__.split(".")[:2]))
prompt = np.array([[5, 9, 33, 70, 12, 44]])
made = {path: greedy(open_graph(Path(path)), prompt, np.ones_like(prompt), 32)[0].tolist() for path in sys.argv[1:]}
print(json.dumps([onnxruntime.__version__, made]))
"""


@pytest.mark.skipif(not OTHERS, reason="EDGEFT_ONNXRUNTIMES names no folders with other versions of onnxruntime")
@pytest.mark.parametrize("site", OTHERS)
def test_older_versions_generate_the_same(site: str, tmp_path: Path) -> None:
    """Each graph in every version from its `min_ort` on; float32 computed everywhere, so that tokens are equal."""
    command = [sys.executable, "-c", "import onnxruntime; print(onnxruntime.__version__)"]
    environment = os.environ | {"PYTHONPATH": site}
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    version = tuple(map(int, printed.split(".")[:2]))
    paths = []
    for kind in ("smollm2", "gemma3", "phi4-mini", "gpt2"):
        make_model(tmp_path / kind, kind)
        entries = [OnnxSettings("fp32"), *(OnnxSettings(dtype, accuracy_level=1) for dtype in ("int4", "int8"))]
        for record in export(tmp_path / kind, tmp_path / f"{kind}-onnx", *entries):
            if tuple(map(int, record["min_ort"].split("."))) <= version:
                paths.append(str(tmp_path / f"{kind}-onnx" / record["file"]))
    environment["PYTHONPATH"] = os.pathsep.join([site, str(Path(__file__).parents[3])])
    command = [sys.executable, "-c", LOAD, *paths]
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    for path, tokens in json.loads(printed)[1].items():
        assert np.array_equal(greedy(open_graph(Path(path)), PROMPT, np.ones_like(PROMPT), 32)[0], tokens), path


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"dtype": "int3"}, "unknown dtype 'int3'; known: int4, int8, fp16, fp32"),
    ({"head_dtype": "q6"}, "unknown dtype 'q6'"),
    ({"layout": "mlx"}, "unknown layout 'mlx'; known: plain, genai, transformers.js"),
    ({"block_size": 48}, "block_size 48: give a power of two"),
]


@pytest.mark.parametrize(("settings", "message"), WRONG, ids=str)
def test_settings_that_do_not_exist(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        OnnxSettings(**settings)


@pytest.mark.parametrize(
    ("dtype", "min_ort", "message"),
    [
        ("int8", "1.20", r"min_ort 1.20: 8 bits need onnxruntime 1.23 or newer; raise min_ort"),
        ("int4", "1.19", r"min_ort 1.19: the operators need onnxruntime 1.20"),
        ("int4", "new", r"min_ort 'new' is no version"),
    ],
)
def test_an_onnxruntime_too_old(folder: Path, tmp_path: Path, dtype: Any, min_ort: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        export(folder, tmp_path, OnnxSettings(dtype, min_ort=min_ort))
    assert not any(tmp_path.iterdir())


def _changed(folder: Path, to: Path, **fields: Any) -> Path:
    to.mkdir()
    for path in folder.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    config = json.loads((to / "config.json").read_text()) | fields
    (to / "config.json").write_text(json.dumps(config))
    return to


FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"model_type": "mamba"}, r"'mamba' .* cannot be exported to ONNX .*supported: bitnet, .*smollm3; docs"),
    ({"hidden_act": "mish"}, r"hidden_act 'mish' cannot be exported to ONNX; supported: gelu"),
    ({"num_hidden_layers": 3}, r"the tensor model.layers.2.* is missing from the weights"),
    ({"rope_parameters": {"rope_type": "spiral", "rope_theta": 1.0}}, r"rope_type 'spiral' cannot be exported"),
]


@pytest.mark.parametrize(("fields", "message"), FAULTS, ids=str)
def test_models_that_cannot_be_exported(folder: Path, tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        export(_changed(folder, tmp_path / "model", **fields), tmp_path / "out", OnnxSettings())
    assert not (tmp_path / "out").exists()


def test_weights_that_are_no_numbers_or_too_large(folder: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    for value, dtype, message in ((np.nan, "int4", "not finite"), (1e6, "fp16", "too large for float16; export fp32")):
        model = _changed(folder, tmp_path / dtype)
        weights = load_file(model / "model.safetensors")
        weights["model.layers.0.mlp.up_proj.weight"][3, 5] = value
        save_file(weights, model / "model.safetensors")
        with pytest.raises(ModelError, match=message):
            export(model, tmp_path / "out", OnnxSettings(dtype))
        assert not list((tmp_path / "out").rglob("*.onnx*"))
