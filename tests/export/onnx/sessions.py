"""Running an ONNX decoder with onnxruntime alone, for any number of sequences."""

from pathlib import Path
from typing import Any

import numpy as np

from edgeft.runtime.ort import onnxruntime

N_TOKENS = 64
PADDED = (0, 17, 33)
"""Padding in front of each sequence of the batch."""


def open_graph(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def prompts(n_vocab: int, length: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Ids and mask (3, length), padded in front by PADDED."""
    ids = np.random.default_rng(0).integers(3, n_vocab - 3, (len(PADDED), length))
    mask = np.ones_like(ids)
    for row, n_padding in enumerate(PADDED):
        mask[row, :n_padding] = 0
    return ids, mask


def run(session: Any, ids: np.ndarray, mask: np.ndarray, past: dict[str, Any]) -> tuple[np.ndarray, dict[str, Any]]:
    """Logits and the keys and values for the next call."""
    positions = np.clip(mask.cumsum(axis=1) - 1, 0, None)[:, -ids.shape[1] :]
    given = {"input_ids": ids, "attention_mask": mask, "position_ids": positions} | (past or empty(session, len(ids)))
    names = [output.name for output in session.get_outputs()]
    made = dict(zip(names, session.run(None, given), strict=True))
    logits = made.pop("logits")
    return logits, {name.replace("present", "past_key_values"): value for name, value in made.items()}


def empty(session: Any, n: int) -> dict[str, np.ndarray]:
    kinds = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
    return {
        put.name: np.zeros((n, put.shape[1], 0, put.shape[3]), kinds[put.type])
        for put in session.get_inputs()
        if put.name.startswith("past")
    }


def greedy(session: Any, ids: np.ndarray, mask: np.ndarray, n_tokens: int = N_TOKENS) -> tuple[np.ndarray, np.ndarray]:
    """The tokens (B, n_tokens) that follow, and the logits of the prompt."""
    first, past = run(session, ids, mask, {})
    logits, tokens = first, []
    for _ in range(n_tokens):
        tokens.append(logits[:, -1].argmax(axis=-1)[:, None])
        mask = np.concatenate([mask, np.ones((len(mask), 1), np.int64)], axis=1)
        logits, past = run(session, tokens[-1], mask, past)
    return np.concatenate(tokens, axis=1), first


def torch_greedy(model: Any, ids: np.ndarray, mask: np.ndarray, n_tokens: int = N_TOKENS) -> np.ndarray:
    """The same by transformers' `generate`."""
    import torch

    with torch.no_grad():
        made = model.generate(
            torch.tensor(ids),
            attention_mask=torch.tensor(mask),
            max_new_tokens=n_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
    return made[:, ids.shape[1] :].numpy()


def torch_logits(model: Any, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    import torch

    positions = torch.tensor(np.clip(mask.cumsum(axis=1) - 1, 0, None))
    with torch.no_grad():
        return model(torch.tensor(ids), attention_mask=torch.tensor(mask), position_ids=positions).logits.numpy()
