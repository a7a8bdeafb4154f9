"""When two models may be compared token by token."""

import json
import shutil
from pathlib import Path

import pytest

from edgeft.errors import ModelError
from edgeft.training.models import load_model, load_tokenizer
from edgeft.training.vocabulary import check_heads, describe_difference, shared_vocabulary
from tests.tiny import make_tiny_llama


def test_padding_behind_the_tokens_is_not_a_difference(tmp_path: Path) -> None:
    narrow = make_tiny_llama(tmp_path / "narrow")
    size = len(load_tokenizer(narrow))
    wide = make_tiny_llama(tmp_path / "wide", vocab_size=384)
    model = load_model(wide)
    model.resize_token_embeddings(size + 64, mean_resizing=False)
    model.save_pretrained(wide)
    assert shared_vocabulary(narrow, wide) == shared_vocabulary(wide, narrow) == size
    check_heads(size, load_model(narrow), load_model(wide))


def test_other_tokens_are_another_vocabulary(tmp_path: Path) -> None:
    ours, theirs = make_tiny_llama(tmp_path / "ours"), make_tiny_llama(tmp_path / "theirs", vocab_size=300)
    assert shared_vocabulary(ours, theirs) is None
    said = describe_difference(ours, theirs)
    assert str(ours) in said
    assert str(theirs) in said
    assert "tokens differ, such as" in said


def test_the_same_tokens_cut_otherwise_are_another_vocabulary(tmp_path: Path) -> None:
    ours = make_tiny_llama(tmp_path / "ours")
    theirs = shutil.copytree(ours, tmp_path / "theirs")
    content = json.loads((theirs / "tokenizer.json").read_text())
    content["pre_tokenizer"]["add_prefix_space"] = True
    (theirs / "tokenizer.json").write_text(json.dumps(content))
    assert shared_vocabulary(ours, theirs) is None
    assert "cut otherwise" in describe_difference(ours, theirs)


def test_a_head_without_a_row_for_each_token_is_refused(tmp_path: Path) -> None:
    model = load_model(make_tiny_llama(tmp_path / "m"))
    with pytest.raises(ModelError, match=r"has 99,999 tokens and its head \d+; tokenizer and weights do not belong"):
        check_heads(99_999, model)
