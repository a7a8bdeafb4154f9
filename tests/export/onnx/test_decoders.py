"""The fp32 graph of every architecture against transformers: logits, and greedy tokens of padded batches."""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgeft.console import silent_log
from edgeft.export.onnx.export import export_onnx
from edgeft.export.onnx.rotary import DISAGREEMENT
from edgeft.export.onnx.settings import OnnxSettings
from tests.export.onnx.sessions import empty, greedy, open_graph, prompts, run, torch_greedy, torch_logits
from tests.tiny_models import DECODERS, LONG, make_model

TOLERANCE = 1e-4
"""Of logits of magnitude 5 to 18, after two to seven layers in float32."""


HALF_ROTATED = LONG | {"partial_rotary_factor": 0.5, "long_factor": [2.0, 3.0] * 4, "short_factor": [1.0, 1.2] * 4}
ROTATED_IN_ATTENTION: dict[str, dict[str, Any]] = {
    "mistral": {"head_dim": 32},
    "qwen3": {"head_dim": 32},
    "gemma2": {"head_dim": 32},
    "gemma3": {"head_dim": 32},
    "phi4-mini": {"hidden_size": 128, "rope_parameters": HALF_ROTATED},
}
"""Settings with which GroupQueryAttention can rotate heads that it cannot as they are in DECODERS: with
windows, soft caps, norms of single heads, two rotations, and half of each head rotated."""


def export(kind: str, folder: Path, fields: Mapping[str, Any] | None = None, **settings: Any) -> tuple[Any, Any]:
    """The model in torch and its graph in onnxruntime; `fields` overrides the configuration."""
    from transformers import AutoModelForCausalLM

    make_model(folder / "model", kind, **fields or {})
    [record] = export_onnx(
        folder / "model", folder, entries=[OnnxSettings(**settings)], provenance={}, log=silent_log()
    )
    return AutoModelForCausalLM.from_pretrained(folder / "model").eval(), open_graph(folder / record["file"])


@pytest.mark.parametrize(
    ("kind", "fields"), [*((kind, {}) for kind in DECODERS), *ROTATED_IN_ATTENTION.items()], ids=str
)
def test_logits_and_greedy_tokens_are_transformers(kind: str, fields: dict[str, Any], tmp_path: Path) -> None:
    model, session = export(kind, tmp_path, fields, dtype="fp32")
    if fields:
        graph = onnx.load(tmp_path / "fp32" / "model.onnx", load_external_data=False).graph
        assert "RotaryEmbedding" not in {node.op_type for node in graph.node}
    ids, mask = prompts(model.config.get_text_config().vocab_size)
    tokens, logits = greedy(session, ids, mask)
    seen = mask.astype(bool)
    assert np.abs(logits - torch_logits(model, ids, mask))[seen].max() < TOLERANCE
    assert np.array_equal(tokens, torch_greedy(model, ids, mask))
    alone, _ = greedy(session, ids[:1], mask[:1])
    assert np.array_equal(alone, torch_greedy(model, ids[:1], mask[:1]))


@pytest.mark.parametrize("kind", ["llama", "smollm2"])
@pytest.mark.parametrize(("n_sequences", "ends"), [(1, (1, 38, 39, 40)), (3, (38, 39, 40))])
def test_positions_are_the_callers(n_sequences: int, ends: tuple[int, ...], kind: str, tmp_path: Path) -> None:
    """Ids at positions that leave gaps, in pieces up to `ends`, as transformers rotates them: nodes rotate llama's
    heads of 24, attention smollm2's of 16."""
    import torch

    model, session = export(kind, tmp_path, dtype="fp32")
    ids = prompts(model.config.vocab_size)[0][:n_sequences]
    positions = np.tile(np.arange(40) * 3, (n_sequences, 1))
    with torch.no_grad():
        wanted = model(torch.tensor(ids), position_ids=torch.tensor(positions)).logits.numpy()
    past, found = empty(session, n_sequences), []
    for start, end in pairwise((0, *ends)):
        given = {
            "input_ids": ids[:, start:end],
            "attention_mask": np.ones_like(ids)[:, :end],
            "position_ids": positions[:, start:end],
        }
        logits, *present = session.run(None, given | past)
        past = dict(zip(past, present, strict=True))
        found.append(logits)
    assert np.abs(np.concatenate(found, axis=1) - wanted).max() < TOLERANCE


def test_sequences_with_other_positions_at_a_place_are_refused_where_attention_rotates(tmp_path: Path) -> None:
    """It reads one table for all of them. Padding and what stands there does not matter."""
    model, session = export("smollm2", tmp_path, dtype="fp32")
    ids, mask = prompts(model.config.vocab_size)
    positions = np.clip(mask.cumsum(axis=1) - 1, 0, None)
    given = {"input_ids": ids, "attention_mask": mask, "position_ids": positions} | empty(session, len(ids))
    [logits] = session.run(["logits"], given)
    [same] = session.run(["logits"], given | {"position_ids": np.where(mask, positions, 7)})
    assert np.array_equal(logits[mask.astype(bool)], same[mask.astype(bool)])
    with pytest.raises(Exception, match=f"{DISAGREEMENT}.*Input shape:.120,1., requested shape:.121,1."):
        session.run(["logits"], given | {"position_ids": np.tile(np.arange(40), (3, 1))})


def test_a_prompt_may_come_in_pieces_and_be_padded_behind(tmp_path: Path) -> None:
    model, session = export("smollm2", tmp_path, dtype="fp32")
    ids, mask = prompts(model.config.vocab_size)
    whole = torch_logits(model, ids[:1], mask[:1])
    _, past = run(session, ids[:1, :15], mask[:1, :15], {})
    rest, _ = run(session, ids[:1, 15:], mask[:1], past)
    assert np.abs(rest - whole[:, 15:]).max() < TOLERANCE
    behind = np.ones_like(mask[:1])
    behind[:, 30:] = 0
    logits, past = run(session, ids[:1], behind, {})
    assert np.abs(logits[:, :30] - whole[:, :30]).max() < TOLERANCE
    following, _ = run(session, ids[:1, 30:31], np.concatenate([behind, [[1]]], axis=1), past)
    assert np.abs(following[:, 0] - whole[:, 30]).max() < TOLERANCE


def test_only_the_logits_asked_for_are_made(tmp_path: Path) -> None:
    model, session = export("smollm2", tmp_path, dtype="fp32")
    ids, mask = prompts(model.config.vocab_size)
    [keep] = session.get_overridable_initializers()
    assert keep.name == "num_logits_to_keep"
    logits, _ = run(session, ids, mask, {})
    last, _ = run(session, ids, mask, {keep.name: np.array(2)} | empty(session, len(ids)))
    assert last.shape[1] == 2
    assert np.array_equal(last, logits[:, -2:])


def test_an_adapter_is_folded_in(tmp_path: Path) -> None:
    """Against peft, with q, k and v side by side in one matrix of the graph."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = make_model(tmp_path / "model", "qwen2")
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), config)
    model.save_pretrained(tmp_path / "adapter")
    [record] = export_onnx(
        folder,
        tmp_path,
        entries=[OnnxSettings("fp32")],
        provenance={},
        log=silent_log(),
        adapter=tmp_path / "adapter",
    )
    ids, mask = prompts(model.config.vocab_size)
    logits, _ = run(open_graph(tmp_path / record["file"]), ids, mask, {})
    wanted = torch_logits(model.eval(), ids, mask)
    assert np.abs(logits - wanted)[mask.astype(bool)].max() < 10 * TOLERANCE
