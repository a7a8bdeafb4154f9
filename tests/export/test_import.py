"""A GGUF file becomes the model folder it was made from."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from edgeft.cli.import_ import DTYPES as CLI_DTYPES
from edgeft.cli.import_ import command
from edgeft.console import silent_log
from edgeft.errors import ModelError, UsageError
from edgeft.export.gguf.architectures import TensorRule
from edgeft.export.gguf.dequantize import DTYPES, import_gguf, undo
from tests.tiny import make_tiny_llama, tiny_tokenizer

TEXTS = (
    "turn on the kitchen light.",
    "Ünïcödé 日本語 😀",
    "  two  spaces\n\n\t12345",
    "<|im_start|>user\nHi<|im_end|>\n",
)


def make_tiny_qwen3(path: Path) -> Path:
    """A random Qwen3 of two layers with the tiny tokenizer."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    make_tiny_llama(path)
    tokenizer = tiny_tokenizer()
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(0)
    Qwen3ForCausalLM(config).save_pretrained(path)
    return path


def there_and_back(folder: Path, out: Path, write: Any, **arguments: Any) -> Path:
    file = write(folder, out / "model.gguf")
    import_gguf(file, out / "back", log=silent_log(), **arguments)
    return out / "back"


def assert_same_model(folder: Path, back: Path) -> None:
    """Every tensor bit for bit, the same ids, the same logits."""
    theirs, ours = load_file(folder / "model.safetensors"), load_file(back / "model.safetensors")
    assert theirs.keys() == ours.keys()
    for name, tensor in theirs.items():
        assert tensor.astype(np.float32).tobytes() == ours[name].tobytes(), name
    tokenizers = [AutoTokenizer.from_pretrained(path) for path in (folder, back)]
    models = [AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32) for path in (folder, back)]
    for text in TEXTS:
        ids, again = (tokenizer(text)["input_ids"] for tokenizer in tokenizers)
        assert ids == again, text
        with torch.no_grad():
            logits, logits_again = (model(torch.tensor([ids])).logits for model in models)
        assert torch.equal(logits, logits_again)


def test_a_llama_with_biases_and_wide_heads(model_folder: Path, tmp_path: Path, write: Any) -> None:
    back = there_and_back(model_folder, tmp_path, write)
    assert_same_model(model_folder, back)
    assert (back / "chat_template.jinja").read_text() == AutoTokenizer.from_pretrained(model_folder).chat_template
    # And the file that is written of it holds the same metadata and tensors.
    again = write(back, tmp_path / "again.gguf")
    assert again.read_bytes() == (tmp_path / "model.gguf").read_bytes()


def test_llama3_rope(tmp_path: Path, write: Any) -> None:
    scaling = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    folder = make_tiny_llama(tmp_path / "llama3", rope_parameters=scaling, head_dim=64)
    assert_same_model(folder, there_and_back(folder, tmp_path, write))


def test_qwen3(tmp_path: Path, write: Any) -> None:
    folder = make_tiny_qwen3(tmp_path / "qwen3")
    assert_same_model(folder, there_and_back(folder, tmp_path, write))


@pytest.mark.shared
def test_sentencepiece(shared: Path, tmp_path: Path, write: Any) -> None:
    folder = shared / "models" / "stories260K"
    assert_same_model(folder, there_and_back(folder, tmp_path, write))


def test_bfloat16_is_rounded_to_nearest(model_folder: Path, tmp_path: Path, write: Any) -> None:
    back = there_and_back(model_folder, tmp_path, write, dtype="bfloat16")
    original, ours = (AutoModelForCausalLM.from_pretrained(path, dtype="auto") for path in (model_folder, back))
    for name, tensor in original.state_dict().items():
        assert torch.equal(tensor.to(torch.bfloat16), ours.state_dict()[name]), name


def test_quantized_weights_are_those_of_gguf_py(model_folder: Path, tmp_path: Path, write: Any) -> None:
    from edgeft.export.gguf import quantize_gguf

    small = tmp_path / "small.gguf"
    quantize_gguf(write(model_folder, tmp_path / "model.gguf"), small, "Q8_0")
    import_gguf(small, tmp_path / "back", log=silent_log())
    stored = next(tensor for tensor in gguf.GGUFReader(small).tensors if tensor.name == "blk.1.ffn_down.weight")
    expected = gguf.dequantize(stored.data, stored.tensor_type)
    ours = load_file(tmp_path / "back" / "model.safetensors")["model.layers.1.mlp.down_proj.weight"]
    np.testing.assert_array_equal(ours, expected)


def joined(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return np.concatenate([left.T, right.T]) + np.float32(1)


def test_any_rule_that_moves_elements_is_undone() -> None:
    rule = TensorRule("both", ("left", "right"), (5, 4), joined, stored=((4, 2), (4, 3)))
    left, right = np.arange(8.0, dtype=np.float32).reshape(4, 2), np.arange(12.0, dtype=np.float32).reshape(4, 3)
    found = {name: values[np.argsort(places)] for name, places, values in undo(rule, joined(left, right))}
    np.testing.assert_array_equal(found["left"], left.ravel())
    np.testing.assert_array_equal(found["right"], right.ravel())


def test_a_rule_that_mixes_elements_is_refused() -> None:
    with pytest.raises(ModelError, match="cannot be turned back"):
        list(undo(TensorRule("sum", ("a",), (3,), np.cumsum), np.zeros(3, np.float32)))


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (b"attn_q.weight", b"attn_z.weight", "'blk.0.attn_q.weight' is missing"),
        (b"llama.rope.freq_base", b"llama.rope.zzzz_base", "which config.json cannot say"),
        (b"\x06\0\0\0\0\0\0\0smollm", b"\x06\0\0\0\0\0\0\0zzzzzz", "splitting rule 'zzzzzz'"),
    ],
)
def test_what_cannot_be_imported_is_named(
    repo_root: Path, tmp_path: Path, write: Any, before: bytes, after: bytes, said: str
) -> None:
    file = write(repo_root / "edgeft" / "assets" / "nano", tmp_path / "model.gguf", ftype="BF16")
    content = file.read_bytes()
    assert before in content
    file.write_bytes(content.replace(before, after, 1))
    with pytest.raises(ModelError, match=said):
        import_gguf(file, tmp_path / "back", log=silent_log())
    assert not (tmp_path / "back").exists()


def test_other_architectures_are_refused_by_name(model_folder: Path, tmp_path: Path, write: Any) -> None:
    file = write(model_folder, tmp_path / "model.gguf")
    file.write_bytes(file.read_bytes().replace(b"llama", b"mamba"))
    with pytest.raises(ModelError, match="'mamba' cannot be imported; supported: llama, qwen2, qwen3"):
        import_gguf(file, tmp_path / "back", log=silent_log())


def test_the_command(model_folder: Path, tmp_path: Path, write: Any) -> None:
    file, out = write(model_folder, tmp_path / "model.gguf"), tmp_path / "new" / "back"
    done = CliRunner().invoke(command("import", "Import."), [str(file), "-o", str(out)])
    assert done.exit_code == 0, done.output
    assert json.loads((out / "config.json").read_text())["model_type"] == "llama"
    assert set(CLI_DTYPES) == set(DTYPES)
    with pytest.raises(UsageError, match="is in use"):
        import_gguf(file, out, log=silent_log())
    with pytest.raises(UsageError, match="dtype int3"):
        import_gguf(file, tmp_path / "other", dtype="int3", log=silent_log())
