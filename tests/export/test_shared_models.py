"""Real tiny models, from the shared folder; transformers is the oracle."""

from pathlib import Path
from typing import Any

import pytest

from edgeft.errors import ModelError
from edgeft.runtime import load

pytestmark = pytest.mark.shared

STARTS = ["", "One day, Lily and her mom"]


@pytest.mark.parametrize("name", ["stories260K", "babyllama105"])
def test_200_greedy_tokens_are_transformers(name: str, shared: Path, tmp_path: Path, write: Any) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = shared / "models" / name
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with load(write(folder, tmp_path / "model.gguf"), n_threads=1) as model:
        for start in STARTS:
            ids = tokenizer(start).input_ids
            output = theirs.generate(
                torch.tensor([ids]), do_sample=False, max_length=None, max_new_tokens=200, min_new_tokens=200
            )
            expected = output[0, len(ids) :].tolist()
            assert model.tokenize("<s>" + start) == ids
            assert list(model.stream(ids, max_new_tokens=200, ignore_eos=True)) == expected
            assert model.detokenize(expected) == tokenizer.decode(expected, skip_special_tokens=True)


def test_an_architecture_without_a_mapping_is_refused(shared: Path, tmp_path: Path, write: Any) -> None:
    with pytest.raises(ModelError, match=r"'bitnet' \(BitNetForCausalLM\) cannot be exported to GGUF"):
        write(shared / "models" / "bitnet-tinystories-3m", tmp_path / "model.gguf")
