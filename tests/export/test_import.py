"""A GGUF file becomes the model folder it was made from."""

import json
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from click.testing import CliRunner
from safetensors.numpy import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from edgeft.cli.import_ import DTYPES as CLI_DTYPES
from edgeft.cli.import_ import command
from edgeft.console import silent_log
from edgeft.errors import ModelError, UsageError
from edgeft.export.folder import read_folder
from edgeft.export.gguf.architectures import TensorRule
from edgeft.export.gguf.dequantize import DTYPES, _write_weights, import_gguf, undo
from edgeft.export.gguf.model_config import config_of
from edgeft.export.gguf.model_tokenizer import tokenizer_files
from edgeft.export.gguf.read import open_gguf
from edgeft.export.gguf.verify import verify_vocabulary
from edgeft.export.gguf.vocabulary import vocabulary_metadata
from edgeft.runtime.gguf_format import read_header
from tests.export.families import FAMILIES, save, write_header
from tests.tiny_models import DECODERS, ENCODERS, make_model

TEXTS = (
    "turn on the kitchen light.",
    "Ünïcödé 日本語 😀",
    "  two  spaces\n\n\t12345",
    "<|im_start|>user\nHi<|im_end|>\n",
)


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


@pytest.mark.parametrize("kind", [*DECODERS, *ENCODERS])
def test_every_architecture_comes_back(kind: str, tmp_path: Path, write: Any) -> None:
    """The folder that comes back gives the file again, byte for byte, and transformers loads it."""
    folder = make_model(tmp_path / "model", kind)
    back = there_and_back(folder, tmp_path, write)
    again = write(back, tmp_path / "again.gguf")
    assert again.read_bytes() == (tmp_path / "model.gguf").read_bytes()
    config = AutoConfig.from_pretrained(back)
    ours, theirs = (
        getattr(transformers, name).from_pretrained(path, attn_implementation="eager").eval()
        for name, path in ((config.architectures[0], back), ((DECODERS | ENCODERS)[kind][0], folder))
    )
    ids = torch.tensor([np.random.default_rng(0).integers(3, 259, 40).tolist()])
    with torch.inference_mode():
        torch.testing.assert_close(ours(ids)[0], theirs(ids)[0], rtol=1e-4, atol=1e-4)


def test_sentence_pooling_comes_back(tmp_path: Path, write: Any) -> None:
    folder = make_model(tmp_path / "model", "bert")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    modules = [("", "sentence_transformers.models.Transformer"), ("1_Pooling", "sentence_transformers.models.Pooling")]
    content = [{"idx": at, "name": str(at), "path": path, "type": kind} for at, (path, kind) in enumerate(modules)]
    (folder / "modules.json").write_text(json.dumps(content))
    back = there_and_back(folder, tmp_path, write)
    assert write(back, tmp_path / "again.gguf").read_bytes() == (tmp_path / "model.gguf").read_bytes()


@pytest.mark.parametrize("name", FAMILIES)
def test_every_tokenizer_comes_back(name: str, tmp_path: Path) -> None:
    """It gives the ids of llama.cpp, and the keys of the file again."""
    folder = save(FAMILIES[name], tmp_path / "model")
    file = write_header(folder, tmp_path / "model.gguf")
    (tmp_path / "back").mkdir()
    for filename, content in tokenizer_files(read_header(file)).items():
        (tmp_path / "back" / filename).write_text(json.dumps(content), encoding="utf-8")
    shutil.copy(folder.path / "config.json", tmp_path / "back")
    back = read_folder(tmp_path / "back")
    verify_vocabulary(file, back)
    assert vocabulary_metadata(back, folder.config["vocab_size"]) == vocabulary_metadata(
        folder, folder.config["vocab_size"]
    )


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
    with pytest.raises(ModelError, match=r"'mamba' cannot be imported; supported: .*llama, .*qwen3"):
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


def without(file: Path, out: Path, *left_out: str, **added: Any) -> Path:
    """A copy of a GGUF file without some keys, or with other values, written by gguf-py."""
    reader = gguf.GGUFReader(str(file))
    writer = gguf.GGUFWriter(str(out), reader.fields["general.architecture"].contents())
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in ("general.architecture", *left_out):
            continue
        inner = field.types[1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, added.get(field.name, field.contents()), field.types[0], inner)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


PLAIN = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
SWA = {"rope_theta": 10000.0, "rope_type": "default"}
LEFT_OUT: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "base of the rotation": ("llama", PLAIN, ("llama.rope.freq_base", "llama.rope.dimension_count")),
    "vocabulary": ("llama", {}, ("llama.vocab_size", "llama.rope.dimension_count")),
    "base of sliding layers": (
        "gemma3", {"rope_parameters": {"sliding_attention": SWA, "full_attention": SWA | {"rope_theta": 1e6}}},
        ("gemma3.rope.freq_base_swa",),
    ),
    "scales": (
        "granite", {"residual_multiplier": 1.0, "embedding_multiplier": 1.0},
        ("granite.residual_scale", "granite.embedding_scale"),
    ),
    "activation": ("modernbert", {}, ("modern-bert.hidden_activation",)),
    "tokenizer's flags": ("llama", {}, ("tokenizer.ggml.add_eos_token", "tokenizer.ggml.padding_token_id")),
}  # fmt: skip


@pytest.mark.parametrize("name", LEFT_OUT)
def test_keys_with_a_default_may_be_left_out(name: str, tmp_path: Path, write: Any) -> None:
    """Other converters, and older ones, leave out what llama.cpp takes for granted."""
    kind, settings, keys = LEFT_OUT[name]
    folder = make_model(tmp_path / "model", kind, **settings)
    full = write(folder, tmp_path / "model.gguf")
    import_gguf(without(full, tmp_path / "less.gguf", *keys), tmp_path / "back", log=silent_log())
    again = write(tmp_path / "back", tmp_path / "again.gguf")
    ours, theirs = (gguf.GGUFReader(str(path)) for path in (again, full))
    architecture = theirs.fields["general.architecture"].contents()
    for field in theirs.fields.values():
        if field.name.startswith(f"{architecture}."):
            assert ours.fields[field.name].contents() == field.contents(), field.name
    for one, other in zip(ours.tensors, theirs.tensors, strict=True):
        assert one.name == other.name
        np.testing.assert_array_equal(one.data, other.data)


def test_a_tensor_that_stays_as_it_is_needs_no_memory(tmp_path: Path, write: Any) -> None:
    """An embedding of 16 MB is written a few rows at a time."""
    folder = make_model(tmp_path / "model", "llama", vocab_size=1 << 16, tie_word_embeddings=True)
    file = open_gguf(write(folder, tmp_path / "model.gguf", ftype="Q8_0"))
    config, architecture = config_of(file, "float32")
    rules = list(architecture.tensors({**architecture.defaults, **config}))
    (tmp_path / "out").mkdir()
    tracemalloc.start()
    _write_weights(tmp_path / "out" / "model.safetensors", file, rules, "float32", silent_log())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    largest = max(rule.shape[0] * rule.shape[-1] * 4 for rule in rules if rule.shape)
    assert largest >= 16 << 20
    assert peak < 0.75 * largest
