"""onnxruntime behind `Model`: transformers is the oracle."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers

from edgeft.errors import ContextOverflow, ModelError, RuntimeFault
from edgeft.runtime import Model, load
from edgeft.runtime.onnx import OnnxModel
from edgeft.runtime.onnx_decoder import GrowingDecoder, SharedDecoder
from edgeft.runtime.onnx_vocabulary import OnnxVocabulary
from tests.onnx_graphs import write_decoder

TEXT = "turn on the kitchen light. set a timer for 10 minutes, then play some music by the piano"
KINDS: dict[str, dict[str, Any]] = {
    "shared": {},
    "plain": {"kind": "plain"},
    "half": {"half": True},
    "last only": {"last_only": True},
    "data file": {"kind": "plain", "data_file": "model.onnx.data"},
}


@pytest.fixture(scope="module")
def folders(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("onnx")

    def folder(kind: str) -> Path:
        path = root / kind
        return path if path.exists() else write_decoder(model_folder, path, **KINDS[kind])

    return folder


@pytest.fixture(scope="module")
def model(folders: Callable[[str], Path]) -> Iterator[Any]:
    with load(folders("shared"), n_threads=1) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def theirs(model_folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(model_folder).eval()


@pytest.fixture(scope="module")
def tokenizer(model_folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model_folder)


def torch_logits(theirs: Any, ids: list[int]) -> np.ndarray:
    with torch.inference_mode():
        return theirs(torch.tensor([ids])).logits[0].numpy()


def torch_greedy(theirs: Any, ids: list[int], n: int) -> list[int]:
    """`n` tokens whatever they are."""
    answer: list[int] = []
    for _ in range(n):
        answer.append(int(torch_logits(theirs, ids + answer)[-1].argmax()))
    return answer


@pytest.mark.parametrize("kind", KINDS)
def test_scores_and_answers_are_those_of_transformers(
    folders: Callable[[str], Path], theirs: Any, tokenizer: Any, kind: str
) -> None:
    ids = tokenizer(TEXT).input_ids * 100
    with load(folders(kind), n_threads=1) as model:
        decoder = model._decoder  # type: ignore[attr-defined]
        assert type(decoder) is (GrowingDecoder if KINDS[kind].get("kind") == "plain" else SharedDecoder)
        for n_tokens in (1, 2, 511, 512, 513, 900):
            ours = model.score(ids[:n_tokens])
            assert (ours.shape, ours.dtype) == ((n_tokens, model.n_vocab), np.float32)
            tolerance = 0.02 if kind == "half" else 1e-4
            np.testing.assert_allclose(ours, torch_logits(theirs, ids[:n_tokens]), atol=tolerance)
        answer = list(model.stream(ids[:40], max_new_tokens=24, ignore_eos=True))
        assert answer == torch_greedy(theirs, ids[:40], 24)


def test_an_answer_does_not_depend_on_what_ran_before(model: Model, tokenizer: Any) -> None:
    ids = tokenizer(TEXT).input_ids
    first = model.generate(ids, max_new_tokens=12)
    model.score(ids[::-1])
    model.generate(ids[:5], max_new_tokens=3)
    assert model.generate(ids, max_new_tokens=12) == first


def test_the_context_is_used_to_its_end(model: Model, theirs: Any, tokenizer: Any) -> None:
    ids = (tokenizer(TEXT).input_ids * 100)[: model.n_ctx - 2]
    assert model.n_ctx == 1024  # of the configuration
    assert list(model.stream(ids, max_new_tokens=9, ignore_eos=True)) == torch_greedy(theirs, ids, 3)


@pytest.mark.parametrize("kind", ["shared", "plain", "half"])
def test_a_single_token_without_logits_is_run(folders: Callable[[str], Path], tokenizer: Any, kind: str) -> None:
    """As a system prompt of one token is: what comes behind it is the same as when both are run together."""
    ids = tokenizer(TEXT).input_ids[:4]
    with OnnxModel(folders(kind), n_ctx=64, n_threads=1) as model:
        expected = model._decode(ids, 1).copy()
        model._keep(0)
        assert len(model._decode(ids[:1], 0)) == 0
        np.testing.assert_allclose(model._decode(ids[1:], 1), expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("kind", ["shared", "plain", "half"])
def test_a_sequence_is_saved_restored_and_cut(folders: Callable[[str], Path], tokenizer: Any, kind: str) -> None:
    ids = tokenizer(TEXT).input_ids
    with OnnxModel(folders(kind), n_ctx=64, n_threads=1) as one, OnnxModel(folders(kind), n_ctx=48) as other:
        one._decode(ids[:9], 0)
        state = one._state()
        expected = one._decode(ids[9:12], 1).copy()
        one._keep(0)
        one._decode(ids[::-1], 1)
        one._keep(0)
        for model in (one, other):
            model._restore(state)
            np.testing.assert_array_equal(model._decode(ids[9:12], 1), expected)
            model._keep(9)
            np.testing.assert_array_equal(model._decode(ids[9:12], 1), expected)
            assert model._identity() == one._identity()
        other._keep(0)
        for wrong in (state[:-1], state + b"x", b"", bytes([49]) + state[1:]):
            with pytest.raises(RuntimeFault, match="this saved state is not one of this model's"):
                other._restore(wrong)


def test_streams_take_turns(model: Model, theirs: Any, tokenizer: Any) -> None:
    prompts = [tokenizer(text).input_ids for text in ("turn on", TEXT)]
    streams = [model.stream(ids, max_new_tokens=8, ignore_eos=True) for ids in prompts]
    answers = list(zip(*streams, strict=True))
    assert [list(answer) for answer in zip(*answers, strict=True)] == [torch_greedy(theirs, ids, 8) for ids in prompts]


def test_a_smaller_context(folders: Callable[[str], Path]) -> None:
    with load(folders("shared"), n_ctx=16, n_threads=1) as small:
        assert small.n_ctx == 16
        with pytest.raises(ContextOverflow, match="17 tokens do not fit the context of 16"):
            small.score([5] * 17)


@pytest.mark.parametrize(
    ("ids", "message"), [([], "the prompt is empty"), ([-1], "outside the vocabulary of 384"), ([384], "outside")]
)
def test_ids_that_cannot_be_run(model: Model, ids: list[int], message: str) -> None:
    with pytest.raises(RuntimeFault, match=message):
        model.score(ids)


@pytest.mark.parametrize("text", [TEXT, "", "naïve “café” 😀\n\t", "<|im_start|>user\nx<|im_end|>\n", "\ud800 alone"])
def test_text_is_that_of_transformers(model: Model, tokenizer: Any, text: str) -> None:
    ids = model.tokenize(text)
    whole = text.encode(errors="replace").decode()
    assert ids == tokenizer(whole, add_special_tokens=False).input_ids
    assert model.detokenize(ids) == tokenizer.decode(ids, skip_special_tokens=True)


def test_chats_are_those_of_transformers(model: Model, tokenizer: Any) -> None:
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "turn on"}]
    theirs = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert model.render(messages) == theirs
    assert model.eos_ids == {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|endoftext|>")}


def test_bytes_of_byte_level_tokens(model: Any, tokenizer: Any) -> None:
    pieces = model.token_bytes()
    assert len(pieces) == len(tokenizer)
    for text in (TEXT, "naïve “café” 😀\n\t\x00 ÿ", "<|im_start|>user"):
        assert b"".join(pieces[token] for token in model.tokenize(text)) == text.encode()
    assert model.special_ids() == {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}


def test_bytes_of_sentencepiece_tokens(tmp_path: Path) -> None:
    """Held to what `tokenizers` decodes."""
    pieces = ["<s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁a"]
    bpe = models.BPE({piece: i for i, piece in enumerate(pieces)}, [("▁", "a")], byte_fallback=True)
    tokenizer = Tokenizer(bpe)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(["<s>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    vocabulary = OnnxVocabulary(tmp_path)
    ids = vocabulary.tokenize("ab a😀\nb<s>")
    assert b"".join(vocabulary.token_bytes()[token] for token in ids).decode() == "ab a😀\nb<s>"
    assert vocabulary.detokenize(ids) == tokenizer.decode(ids) == "ab a😀\nb"


def test_a_folder_without_a_template(folders: Callable[[str], Path], model_folder: Path, tmp_path: Path) -> None:
    folder = write_decoder(model_folder, tmp_path / "bare")
    (folder / "chat_template.jinja").unlink()
    with load(folder, n_threads=1) as bare, pytest.raises(ModelError, match="no chat template"):
        bare.render([{"role": "user", "content": "x"}])


def test_closed(folders: Callable[[str], Path]) -> None:
    model = load(folders("shared"), n_threads=1)
    model.close()
    model.close()
    with pytest.raises(RuntimeFault, match="was closed"):
        model.score([1])


def test_no_torch_where_it_runs(folders: Callable[[str], Path]) -> None:
    code = f"""
import sys
from edgeft.runtime import load
with load({str(folders("shared"))!r}, n_threads=1) as model:
    print(model.generate(model.tokenize("turn on"), max_new_tokens=2))
print(sorted({{"torch", "transformers", "onnx", "pydantic", "llama_cpp"}} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
