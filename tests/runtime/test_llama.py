"""llama.cpp behind `Model`: transformers is the oracle."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeft.errors import MissingExtra, ModelError, RuntimeFault
from edgeft.runtime import Model, load
from edgeft.runtime.llama_vocabulary import LlamaVocabulary

TEXT = "turn on the kitchen light. set a timer for 10 minutes, then play some music by the piano"


@pytest.fixture(scope="module")
def model(model_file: Path) -> Iterator[Model]:
    with load(model_file, n_threads=1) as loaded:
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
    import torch

    with torch.inference_mode():
        return theirs(torch.tensor([ids])).logits[0].numpy()


def torch_greedy(theirs: Any, ids: list[int], n: int) -> list[int]:
    """`n` tokens whatever they are."""
    answer: list[int] = []
    for _ in range(n):
        answer.append(int(torch_logits(theirs, ids + answer)[-1].argmax()))
    return answer


@pytest.mark.parametrize("n_tokens", [1, 2, 511, 512, 513, 900])
def test_scores_are_transformers_logits(model: Model, theirs: Any, tokenizer: Any, n_tokens: int) -> None:
    ids = (tokenizer(TEXT).input_ids * 100)[:n_tokens]
    ours = model.score(ids)
    assert ours.shape == (n_tokens, model.n_vocab)
    assert ours.dtype == np.float32
    # llama.cpp keeps keys and values in half precision.
    np.testing.assert_allclose(ours, torch_logits(theirs, ids), atol=0.02)


def test_greedy_is_transformers_greedy(model: Model, theirs: Any, tokenizer: Any) -> None:
    ids = tokenizer(TEXT).input_ids
    assert list(model.stream(ids, max_new_tokens=24, ignore_eos=True)) == torch_greedy(theirs, ids, 24)


def test_an_answer_does_not_depend_on_what_ran_before(model: Model, tokenizer: Any) -> None:
    ids = tokenizer(TEXT).input_ids
    first = model.generate(ids, max_new_tokens=12)
    model.score(ids[::-1])
    model.generate(ids[:5], max_new_tokens=3)
    assert model.generate(ids, max_new_tokens=12) == first


def test_stops(model: Model, tokenizer: Any) -> None:
    ids = tokenizer(TEXT).input_ids
    answer = list(model.stream(ids, max_new_tokens=20, ignore_eos=True))
    ended = answer.index(next(token for token in answer if answer.index(token) > 2))
    assert list(model.stream(ids, max_new_tokens=20, stop=[answer[ended]], ignore_eos=True)) == answer[:ended]
    assert model.generate(ids, max_new_tokens=0) == []


def test_the_end_token_ends_an_answer(model_folder: Path, tokenizer: Any, tmp_path: Path) -> None:
    """A model whose output matrix makes one token certain answers nothing when that is the end token."""
    import torch
    from transformers import AutoModelForCausalLM

    from edgeft.console import silent_log
    from edgeft.export.gguf import write_gguf

    certain = AutoModelForCausalLM.from_pretrained(model_folder)
    with torch.no_grad():
        certain.lm_head.weight.zero_()
        certain.model.norm.weight.zero_()
    certain.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    write_gguf(tmp_path, tmp_path / "zero.gguf", ftype="F32", name="zero", provenance={}, log=silent_log())
    with load(tmp_path / "zero.gguf", n_threads=1) as zero:
        # All logits are equal, so greedy takes token 0, `<|endoftext|>`, which ends an answer.
        assert tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"]) == [0, 2]
        assert zero.eos_ids == {0, 2}
        assert zero.generate([5, 6], max_new_tokens=5) == []
        assert list(zero.stream([5, 6], max_new_tokens=5, ignore_eos=True)) == [0] * 5


def test_sampling_is_decided_by_the_seed(model: Model, tokenizer: Any) -> None:
    ids = tokenizer(TEXT).input_ids
    answers = [model.generate(ids, max_new_tokens=12, temperature=1.5, seed=seed) for seed in (1, 1, 2)]
    assert answers[0] == answers[1]
    assert answers[0] != answers[2]


def test_tokenizes_as_transformers_without_bos(model: Model, tokenizer: Any) -> None:
    text = "<|im_start|>user\nDéjà vu 😀 12<|im_end|>\n"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert model.tokenize(text) == ids
    assert model.tokenize("") == []
    assert model.detokenize(ids) == tokenizer.decode(ids, skip_special_tokens=True)
    assert model.detokenize([]) == ""


def test_broken_utf8_becomes_replacement_characters(model: Model) -> None:
    ids = model.tokenize("😀")
    assert len(ids) > 1
    assert model.detokenize(ids[:1]) == "�"


def test_chat_renders_and_answers(model: Model, tokenizer: Any) -> None:
    chat = [{"role": "user", "content": "turn on the light"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    assert model.tokenize(model.render(chat)) == prompt
    assert model.chat(chat, max_new_tokens=9).text == model.detokenize(model.generate(prompt, max_new_tokens=9))


def test_an_answer_is_that_of_a_loop_by_hand(model: Model, model_file: Path, repo_root: Path) -> None:
    chat = [{"role": "user", "content": TEXT}]
    loop = [sys.executable, repo_root / "benchmarks" / "minimal_llama.py", model_file, "256", "1", "40"]
    done = subprocess.run(loop, input=model.render(chat), capture_output=True, text=True, check=True)
    answer = model.chat(chat, max_new_tokens=40)
    assert json.loads(done.stdout) == {"text": answer.text, "n_new": answer.n_new}


def test_metadata_and_context(model: Model, model_file: Path) -> None:
    assert model.metadata["general.name"] == "lively"
    assert model.n_ctx == 1024
    with load(model_file, n_ctx=16, n_threads=1) as short:
        assert (short.n_ctx, short.n_threads) == (16, 1)
        assert len(list(short.stream([5] * 16, max_new_tokens=9, ignore_eos=True))) == 1
        assert len(list(short.stream([5] * 10, max_new_tokens=99, ignore_eos=True))) == 7
        for ids in ([5] * 17, []):
            with pytest.raises(RuntimeFault, match=r"do not fit the context of 16|the prompt is empty"):
                short.stream(ids, max_new_tokens=1)
            with pytest.raises(RuntimeFault):
                short.score(ids)
    with load(model_file, n_ctx=4096, n_threads=1) as long:
        assert long.n_ctx == 1024


def test_misuse_is_an_error(model: Model, model_file: Path) -> None:
    with pytest.raises(RuntimeFault, match="outside the vocabulary"):
        model.score([1, model.n_vocab])
    closed = load(model_file, n_threads=1)
    closed.close()
    closed.close()
    for use in (lambda: closed.score([1]), lambda: closed.tokenize("a"), lambda: closed.detokenize([1])):
        with pytest.raises(RuntimeFault, match="closed"):
            use()


def test_what_llama_cpp_refuses_is_told(model_file: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.gguf"
    wrong.write_bytes(model_file.read_bytes().replace(b"blk.1.ffn_up.weight", b"blk.1.ffn_xx.weight"))
    with pytest.raises(RuntimeFault, match=r"llama\.cpp refused the file: .*blk\.1\.ffn_up\.weight"):
        load(wrong)


def test_a_file_without_template_cannot_chat(model_file: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare.gguf"
    bare.write_bytes(model_file.read_bytes().replace(b"tokenizer.chat_template", b"tokenizer.chat_templat_"))
    with LlamaVocabulary(bare) as vocabulary, pytest.raises(ModelError, match="no chat template"):
        vocabulary.render([{"role": "user", "content": "hi"}])


def test_importing_the_runtime_loads_nothing_heavy(repo_root: Path) -> None:
    code = "import sys, edgeft.runtime; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=repo_root, capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert not loaded & {"torch", "transformers", "peft", "pydantic", "click", "asyncio"}
    assert not loaded & {"llama_cpp", "onnxruntime", "tokenizers", "llguidance", "numpy", "jinja2"}


def test_running_a_model_loads_no_training_library(repo_root: Path, model_file: Path) -> None:
    code = (
        "import sys, edgeft.runtime as r; m = r.load(sys.argv[1], n_threads=1)\n"
        "m.chat([{'role': 'user', 'content': 'hi'}], max_new_tokens=2); m.close(); print(*sys.modules)"
    )
    command = [sys.executable, "-c", code, str(model_file)]
    done = subprocess.run(command, cwd=repo_root, capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert not loaded & {"torch", "transformers", "peft", "pydantic", "gguf", "safetensors"}
    assert done.stderr == ""


def test_a_missing_backend_names_its_extra(repo_root: Path, model_file: Path) -> None:
    code = (
        "import sys; sys.modules['llama_cpp'] = None\n"
        "import edgeft.runtime, edgeft.errors\n"
        "try: edgeft.runtime.load(sys.argv[1])\n"
        "except edgeft.errors.MissingExtra as error: print(error)"
    )
    command = [sys.executable, "-c", code, str(model_file)]
    done = subprocess.run(command, cwd=repo_root, capture_output=True, text=True, check=True)
    assert "edgeft[gguf]" in done.stdout
    assert issubclass(MissingExtra, Exception)
