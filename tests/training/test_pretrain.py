"""Pre-training from nothing: the tokenizer, the documents, a model that learns."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from edgeft.console import silent_log
from edgeft.errors import DataError
from edgeft.recipe_reader import read_recipe
from edgeft.sections import PretrainModel
from edgeft.stages.pretrain import run
from edgeft.training.pretraining import encode_documents, fresh_llama, read_documents, train_tokenizer

CHAT = {"messages": [{"role": "user", "content": "say 123 blue"}, {"role": "assistant", "content": "blue 321"}]}
DOCUMENTS = [{"text": f"the {c} cat sat on the {c} mat, {n} times."} for c in ("red", "blue") for n in range(40)]
PREPARE = """
import argparse, json, pathlib
parser = argparse.ArgumentParser()
parser.add_argument("--out", type=pathlib.Path)
out = parser.parse_args().out
documents = json.loads({documents!r})
for name in ("train", "validation"):
    (out / f"{{name}}.jsonl").write_text("".join(json.dumps(d) + "\\n" for d in documents))
"""


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer([*DOCUMENTS, CHAT], 512, 64)


def test_special_tokens_first_digits_alone_bytes_survive(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.convert_ids_to_tokens([0, 1, 2]) == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    assert tokenizer.tokenize("1234") == ["1", "2", "3", "4"]
    text = "naïve 🥚\t  end\n\n\x00"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_documents_are_cut_into_pieces_and_nothing_is_lost(tokenizer: PreTrainedTokenizerFast) -> None:
    long = {"text": "the red cat sat. " * 30}
    tokens = encode_documents([long, CHAT], tokenizer, 50, silent_log())
    assert tokens.lengths.max() <= 50
    assert tokens.loss_mask.all()
    whole = tokenizer.decode(tokens.input_ids.tolist())
    chat = tokenizer.apply_chat_template(CHAT["messages"], tokenize=False)
    assert whole == f"<|endoftext|>{long['text']}<|endoftext|>{chat}"


def test_a_fresh_llama_is_a_function_of_the_seed(tokenizer: PreTrainedTokenizerFast) -> None:
    shape = PretrainModel(hidden_size=64, intermediate_size=96, num_hidden_layers=2)
    a, b, c = (fresh_llama(shape, tokenizer, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(a[n], b[n]) for n in a)
    assert not torch.equal(a["model.embed_tokens.weight"], c["model.embed_tokens.weight"])


@pytest.mark.parametrize(("line", "message"), [("{", ":2: not JSON"), ('{"a": 1}', ':2: neither "text" nor')])
def test_bad_corpus_lines_are_named(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "c.jsonl").write_text('{"text": "a"}\n' + line + "\n")
    with pytest.raises(DataError, match=message):
        read_documents(tmp_path / "c.jsonl")


def test_the_stage_learns_and_writes_a_model_transformers_loads(tmp_path: Path) -> None:
    (tmp_path / "prepare.py").write_text(PREPARE.format(documents=json.dumps([*DOCUMENTS, CHAT])))
    recipe = {
        "name": "t",
        "pretrain": {
            "prepare": {"script": "prepare.py"},
            "tokenizer": {"vocab_size": 512},
            "model": {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2},
            "batch_tokens": 512,
            "max_length": 64,
            "learning_rate": 5e-3,
            "num_train_epochs": 45,
            "torch_dtype": "float32",
        },
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    out = tmp_path / "out"
    out.mkdir()
    metrics = run(read_recipe(tmp_path / "recipe.yaml"), {}, out, silent_log())
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert metrics["eval_loss"] < rows[0]["loss"] / 2
    model = AutoModelForCausalLM.from_pretrained(out / "model", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(out / "model")
    assert model.config.vocab_size == len(tokenizer)
    # The mask is given because the text begins with the token that also pads.
    prompt = tokenizer("<|endoftext|>the red cat sat on the", return_tensors="pt")
    answer = model.generate(prompt.input_ids, attention_mask=prompt.attention_mask, max_new_tokens=3, do_sample=False)
    assert tokenizer.decode(answer[0]).endswith("on the red mat,")
