"""Real tiny models, from the shared folder; transformers is the oracle."""

from pathlib import Path
from typing import Any

import pytest

from edgeft.runtime import load

pytestmark = pytest.mark.shared

STARTS = ["", "One day, Lily and her mom"]


MODELS = ["stories260K", "babyllama105", "bitnet-tinystories-3m"]
LESSON = "Lily put on her red boots and went to the shop to buy two eggs. "


@pytest.mark.parametrize("tuned", [False, True], ids=["as it is", "fine-tuned"])
@pytest.mark.parametrize("name", MODELS)
def test_200_greedy_tokens_are_transformers(name: str, tuned: bool, shared: Path, tmp_path: Path, write: Any) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = shared / "models" / name
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if tuned:
        fine_tune(theirs, tokenizer(LESSON * 3, return_tensors="pt").input_ids)
        folder = tmp_path / "tuned"
        theirs.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
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


def fine_tune(model: Any, ids: Any) -> None:
    """A few steps on one text: enough to move every weight and the answers."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(8):
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
