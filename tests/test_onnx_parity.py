"""ONNX folders as forms of the model, beside a GGUF file: honest ones pass, and the numbers are torch's."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from edgeft.console import silent_log
from edgeft.export.onnx.export import export_onnx
from edgeft.export.onnx.settings import OnnxSettings
from edgeft.parity.compare import raise_if_bad
from edgeft.parity.files import bisect_files, compare_files
from edgeft.parity.onnx_form import onnx_form
from edgeft.sections import Tolerance
from tests.lively import make_lively_llama
from tests.parity_models import plant

DTYPES: tuple[Any, ...] = ("fp32", "fp16", "int8", "int4")
# Of a random model the two most likely tokens are close, and no weight is redundant.
LOOSE = {family: {"top1": 0.5, "kl_mean": 0.5} for family in ("q8_0", "q4")}
LIMITS = LOOSE | {"f16": {"top1": 0.9, "kl_mean": Tolerance().f16.kl_mean}}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("parity")
    make_lively_llama(root / "model")
    entries = {dtype: OnnxSettings(dtype=dtype) for dtype in DTYPES}
    export_onnx(root / "model", root, entries=entries, provenance={}, log=silent_log(), n_threads=1)
    return root


def test_honest_folders_pass(root: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    words = ("turn on the light", "what is the weather?", "hi")
    lines = [json.dumps({"messages": [{"role": "user", "content": text}]}) for text in words]
    prompts.write_text("\n".join(lines))
    gguf = plant("none", root / "model", tmp_path / "model.gguf", "F16")
    files = [gguf, *(root / dtype for dtype in DTYPES)]
    options: dict[str, Any] = {"prompts": prompts, "n_threads": 1, "log": silent_log()}
    parity = compare_files(root / "model", files, n_gen=12, limits=LIMITS, **options)
    raise_if_bad(parity)
    rows = {row["form"]: row for row in parity["rows"]}
    assert list(rows) == ["torch", "model.gguf", *DTYPES]
    assert [row["family"] for row in rows.values()] == ["f16", "f16", "f16", "f16", "q8_0", "q4"]
    assert rows["fp32"]["kl_mean"] < 1e-9
    assert rows["fp32"]["greedy_prefix"] == 1.0
    assert rows["fp32"]["logit_difference_max"] < 1e-4
    assert rows["fp32"]["kl_mean"] < rows["fp16"]["kl_mean"] < rows["int8"]["kl_mean"] < rows["int4"]["kl_mean"]
    assert rows["int4"]["previous"]["form"] == "int8"
    assert bisect_files(root / "model", [gguf, root / "int4"], **options) == {"model.gguf": None, "int4": None}


def test_logits_of_a_form_are_torchs(root: Path) -> None:
    ids = list(range(5, 45))
    with torch.inference_mode():
        theirs = AutoModelForCausalLM.from_pretrained(root / "model")(torch.tensor([ids])).logits[0].numpy()
    with onnx_form("fp32", root / "fp32", 1).open(64) as form:
        np.testing.assert_allclose(form.logits(ids, 7), theirs[-7:], atol=1e-4)
        assert form.traits.n_ctx == 64
        assert (form.traits.bos_id, form.traits.eos_id, form.traits.stop_ids) == (0, 2, {0, 2})
