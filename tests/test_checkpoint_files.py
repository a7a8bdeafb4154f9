"""Which files of a folder are the model."""

import json
from pathlib import Path

import pytest

from edgeft.checkpoint_files import INDEX, WEIGHTS, weight_files
from edgeft.errors import ModelError

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
TWO = json.dumps({"weight_map": {"a": SHARDS[0], "b": SHARDS[1], "c": SHARDS[0]}})


@pytest.mark.parametrize(
    ("content", "model"),
    [
        ({WEIGHTS: ""}, [WEIGHTS]),
        ({WEIGHTS: "", INDEX: TWO, SHARDS[0]: "", SHARDS[1]: ""}, [WEIGHTS]),  # stale shards of an older save
        ({WEIGHTS: "", INDEX: TWO}, [WEIGHTS]),
        ({INDEX: TWO, SHARDS[0]: "", SHARDS[1]: ""}, [*SHARDS]),
        ({INDEX: TWO, SHARDS[0]: "", SHARDS[1]: "", "model-00003-of-00003.safetensors": ""}, [*SHARDS]),
        ({WEIGHTS: "", "consolidated.safetensors": "", "adapter_model.safetensors": ""}, [WEIGHTS]),
        ({"consolidated.safetensors": ""}, []),
        ({SHARDS[0]: "", SHARDS[1]: ""}, []),
    ],
)
def test_transformers_order(content: dict[str, str], model: list[str], tmp_path: Path) -> None:
    for name, text in content.items():
        (tmp_path / name).write_text(text)
    assert [path.name for path in weight_files(tmp_path)] == model


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({INDEX: TWO, SHARDS[0]: ""}, f"the shard {SHARDS[1]} is missing"),
        ({INDEX: "{"}, "is no index of weights"),
        ({INDEX: "[]"}, "is no index of weights"),
        ({INDEX: '{"weight_map": 3}'}, "is no index of weights"),
        ({WEIGHTS: "", "adapter_config.json": "{}"}, "adapter_config.json lies beside model.safetensors"),
        ({INDEX: TWO, SHARDS[0]: "", SHARDS[1]: "", "adapter_config.json": "{}"}, "lies beside model-00001"),
    ],
)
def test_ambiguous_folders_are_refused(content: dict[str, str], said: str, tmp_path: Path) -> None:
    for name, text in content.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ModelError, match=said):
        weight_files(tmp_path)
