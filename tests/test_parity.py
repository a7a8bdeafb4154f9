"""Parity: faults planted in any form are found and named, honest forms pass."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeft.console import silent_log
from edgeft.errors import DataError, ModelError, ParityFailed, UsageError
from edgeft.export.gguf import quantize_gguf
from edgeft.parity.compare import compare_forms, raise_if_bad
from edgeft.parity.files import compare_files, read_prompts
from edgeft.parity.forms import Prompt, gguf_form
from edgeft.parity.numbers import common_prefix, kl_divergence, top1_agrees
from edgeft.parity.table import render_table
from edgeft.parity.torch_form import adapter_form, folder_form
from edgeft.sections import Tolerance
from tests.lively import make_lively_llama
from tests.parity_models import plant

LIMITS = Tolerance().model_dump()
WORDS = ("turn on the kitchen light", "what is the weather", "play music", "set a timer for 10 minutes", "hi")
PROMPTS = [Prompt(({"role": "user", "content": text},)) for text in WORDS]
N_GEN = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose template puts one BOS in front."""
    path = make_lively_llama(tmp_path_factory.mktemp("lively"))
    template = path / "chat_template.jinja"
    template.write_text("{{ bos_token }}" + template.read_text())
    return path


def compare(sources: list[Any], prompts: list[Prompt] = PROMPTS, **options: Any) -> dict[str, Any]:
    return compare_forms(sources, prompts, **({"n_gen": N_GEN, "limits": LIMITS, "log": silent_log()} | options))


def test_kl_and_top1_are_torchs(folder: Path) -> None:
    import torch

    random = np.random.default_rng(0)
    ours, theirs = random.normal(0, 3, (2, 50, 40)).astype(np.float32)
    log_p, log_q = (torch.log_softmax(torch.tensor(x).double(), -1) for x in (ours, theirs))
    expected = torch.nn.functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)
    np.testing.assert_allclose(kl_divergence(ours, theirs), expected.numpy(), rtol=1e-12)
    assert top1_agrees(ours, theirs).tolist() == (log_p.argmax(-1) == log_q.argmax(-1)).tolist()


def test_kl_of_a_worked_example() -> None:
    p, q = np.log([[0.5, 0.25, 0.25]]), np.log([[0.25, 0.5, 0.25]])
    # 0.5 ln 2 - 0.25 ln 2; the direction does not matter here, in the second pair it does.
    assert kl_divergence(p, q) == pytest.approx(0.25 * np.log(2))
    a, b = np.log([[0.75, 0.25]]), np.log([[0.5, 0.5]])
    assert kl_divergence(a, b) == pytest.approx(0.75 * np.log(1.5) + 0.25 * np.log(0.5))
    assert kl_divergence(a + 7, b - 1000) == pytest.approx(kl_divergence(a, b))


@pytest.mark.parametrize(
    ("reference", "form", "share"),
    [([1, 2, None], [1, 2, None], 1.0), ([1, 2, None], [1, 2, 3], 2 / 3), ([1, 2], [1], 0.5), ([1], [2, 1], 0.0)],
)
def test_common_prefix(reference: list[Any], form: list[Any], share: float) -> None:
    assert common_prefix(reference, form) == pytest.approx(share)


def test_honest_exports_pass(folder: Path, tmp_path: Path) -> None:
    files = [plant("none", folder, tmp_path / f"{ftype}.gguf", ftype) for ftype in ("F32", "F16", "BF16")]
    for ftype in ("Q8_0", "Q4_K_M"):
        quantize_gguf(files[0], tmp_path / f"{ftype}.gguf", ftype, n_threads=1)
        files.append(tmp_path / f"{ftype}.gguf")
    # Of a random model the two most likely tokens are close, so rounding often swaps them.
    limits = {family: values | {"top1": 0.6} for family, values in LIMITS.items()} | {"f16": LIMITS["f16"]}
    sources = [folder_form("merged", folder), *(gguf_form(path.stem, path, 1) for path in files)]
    parity = compare(sources, limits=limits)
    raise_if_bad(parity)
    assert [row["form"] for row in parity["rows"]] == ["merged", "F32", "F16", "BF16", "Q8_0", "Q4_K_M"]
    assert [row["family"] for row in parity["rows"]] == ["f16"] * 4 + ["q8_0", "q4"]
    numbers = {row["form"]: row for row in parity["rows"]}
    assert numbers["F32"]["kl_mean"] < 1e-6 < numbers["BF16"]["kl_mean"] < numbers["Q8_0"]["kl_mean"]
    assert numbers["F32"]["top1_agreement"] > 0.98
    assert numbers["Q4_K_M"]["previous"]["form"] == "Q8_0"
    assert parity["positions"] == sum((N_GEN + 1) for _ in PROMPTS)
    assert json.loads(json.dumps(parity, allow_nan=False)) == parity


FAULTS = {
    "unpermuted q/k": "kl_mean",
    "wrong rope theta": "kl_mean",
    "dropped bias": "kl_mean",
    "wrong EOS": "eos",
    "ordinary token as EOS": "stop",
    "doubled BOS in the template": "bos",
}


@pytest.mark.parametrize("ftype", ["F16", "Q8_0"])
@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_found_and_the_form_is_named(fault: str, ftype: str, folder: Path, tmp_path: Path) -> None:
    """The fault is in the second file; the honest one before it passes."""
    good = plant("none", folder, tmp_path / "good.gguf")
    bad = plant(fault, folder, tmp_path / "bad.gguf", "F16" if ftype == "F16" else "F32")
    if ftype != "F16":
        quantize_gguf(bad, tmp_path / "q.gguf", ftype, n_threads=1)
        bad = tmp_path / "q.gguf"
    sources = [folder_form("merged", folder), gguf_form("F16", good, 1), gguf_form("shipped", bad, 1)]
    parity = compare(sources)
    assert [row["ok"] for row in parity["rows"]] == [True, True, False]
    assert parity["rows"][2]["problems"][0]["check"] == FAULTS[fault]
    with pytest.raises(ParityFailed, match=r"first bad: shipped: ") as error:
        raise_if_bad(parity)
    assert error.value.exit_code == 3


def lora_on(folder: Path, out: Path) -> Path:
    """An adapter on every linear layer that changes the model a lot."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(folder), config).save_pretrained(out)
    return out


def test_a_merge_is_compared_with_the_adapter(folder: Path, tmp_path: Path) -> None:
    from edgeft.training.merging import merge_adapter

    adapter, merged = lora_on(folder, tmp_path / "adapter"), tmp_path / "merged"
    shutil.copytree(folder, merged)
    merge_adapter(folder, adapter, merged, "float32")
    first = adapter_form("adapter", folder, adapter, folder)
    parity = compare([first, folder_form("merged", merged)])
    raise_if_bad(parity)
    assert parity["rows"][1]["kl_mean"] < 1e-9
    # A merge that was skipped.
    parity = compare([first, folder_form("merged", folder)])
    with pytest.raises(ParityFailed, match="first bad: merged: kl_mean"):
        raise_if_bad(parity)


def test_a_reference_with_doubled_bos_is_bad_itself(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    template = copy / "chat_template.jinja"
    template.write_text("{{ bos_token }}" + template.read_text())
    parity = compare([folder_form("merged", copy)])
    assert parity["first_bad"] == "merged: prompt 0 ('turn on the kitchen light') begins with two BOS tokens (0)"


def test_another_vocabulary_is_told(folder: Path, tmp_path: Path) -> None:
    other = make_lively_llama(tmp_path / "other", vocab_size=300)
    parity = compare([folder_form("merged", folder), folder_form("other", other)])
    checks = [problem["check"] for problem in parity["rows"][1]["problems"]]
    assert checks == ["prompt_ids", "vocabulary"]


def test_prompts_without_room_are_left_out(folder: Path) -> None:
    long = Prompt(({"role": "user", "content": "light " * 200},))
    parity = compare([folder_form("merged", folder)], [*PROMPTS, long])
    assert (parity["prompts"], parity["skipped_prompts"]) == (len(PROMPTS), 1)
    with pytest.raises(DataError, match="no prompt leaves room for 16 tokens in the context of 256"):
        compare([folder_form("merged", folder)], [long])


def test_a_model_without_template_cannot_be_asked(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match="no chat template"):
        compare([folder_form("merged", tmp_path / "model")])


def test_the_table_fits_a_terminal(folder: Path, tmp_path: Path) -> None:
    bad = plant("doubled BOS in the template", folder, tmp_path / "a-very-long-name-of-a-model-Q4_K_M.gguf")
    parity = compare_files(folder, [bad], n_gen=4, n_threads=1, limits=LIMITS, log=silent_log())
    lines = render_table(parity).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[2].split() == ["torch", "reference", "pass"]
    assert lines[3].startswith("…")
    assert lines[3].endswith("FAIL")
    assert lines[-2].startswith("first bad: a-very-long-name-of-a-model-Q4_K_M.gguf: prompt 0 ('Hello!')")
    assert not any(line != line.rstrip() for line in lines)


def test_files_are_compared_with_their_folder(folder: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    lines = [{"messages": [{"role": "user", "content": w}, {"role": "assistant", "content": "x"}]} for w in WORDS]
    prompts.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    file = plant("none", folder, tmp_path / "model.gguf")
    parity = compare_files(folder, [file], prompts=prompts, n_gen=4, n_threads=1, limits=LIMITS, log=silent_log())
    raise_if_bad(parity)
    assert [row["form"] for row in parity["rows"]] == ["torch", "model.gguf"]
    assert parity["prompts"] == len(WORDS)
    assert read_prompts(prompts) == PROMPTS
    with pytest.raises(UsageError, match="name at least one GGUF file"):
        compare_files(folder, [], limits=LIMITS, log=silent_log())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", r"prompts\.jsonl:1: not JSON"),
        (b"\n[]", r"prompts\.jsonl:2: needs \"messages\""),
        (b'{"messages": [{"content": "x"}]}', 'needs "messages"'),
        (b'{"messages": []}', "no message to answer"),
        (b'{"messages": [{"role": "assistant", "content": "x"}]}', "no message to answer"),
        (b"\n\n", "no prompts"),
        (b"\xff", "cannot be read as UTF-8"),
    ],
)
def test_bad_prompts_are_refused(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=said):
        read_prompts(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_prompts(tmp_path / "missing.jsonl")
