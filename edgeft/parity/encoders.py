"""Is an exported classifier still the one that was trained? Labels, probabilities and logits, text by text."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification

from edgeft.console import Log
from edgeft.errors import ModelError
from edgeft.parity.checks import Problem
from edgeft.parity.numbers import kl_divergence, top1_agrees
from edgeft.runtime.encoder import EncoderModel
from edgeft.training.models import load_tokenizer

REFERENCE = "torch"
FLOATS = ("fp32", "fp16")
SHOWN = 40


@dataclasses.dataclass(frozen=True)
class Distance:
    """How far logits are from the reference's, over all texts; `worst_…` are the texts' numbers."""

    top1_agreement: float
    """Share of texts with the same label."""
    kl_mean: float
    """Of the probabilities, in nats."""
    kl_p99: float
    max_logit_difference: float
    worst_kl: int
    worst_label: int

    @classmethod
    def between(cls, reference: np.ndarray, form: np.ndarray) -> "Distance":
        """Of two arrays of logits (N, C)."""
        divergences, agrees = kl_divergence(reference, form), top1_agrees(reference, form)
        return cls(
            top1_agreement=float(agrees.mean()),
            kl_mean=float(divergences.mean()),
            kl_p99=float(np.quantile(divergences, 0.99)),
            max_logit_difference=float(np.abs(reference - form).max()),
            worst_kl=int(divergences.argmax()),
            worst_label=int(agrees.argmin()),
        )

    def to_json(self) -> dict[str, float]:
        """The numbers, without those of texts."""
        return {name: value for name, value in dataclasses.asdict(self).items() if not name.startswith("worst")}


def compare_encoders(
    model_dir: Path,
    folders: Mapping[str, Path],
    texts: Sequence[str],
    limits: Mapping[str, Mapping[str, float]],
    *,
    n_threads: int | None = None,
    log: Log,
) -> dict[str, Any]:
    """Compare each of `folders`, by name, with the classifier of `model_dir` in torch; the content of parity.json.

    `limits` are those of the recipe by family: `f16` holds for fp32 and fp16, `q8_0` for int8. Raises ModelError for
    another number of classes, and ModelError and RuntimeFault as `EncoderModel` does.
    """
    logits, families = {REFERENCE: torch_logits(model_dir, texts)}, {REFERENCE: "f16"}
    for name, folder in folders.items():
        with EncoderModel(folder, n_threads=n_threads) as model:
            logits[name] = model.logits(texts)
            dtype = model.metadata.get("onnx.edgeft.dtype", "fp32")
            families[name] = "f16" if dtype in FLOATS else "q8_0"
        (_, theirs), (_, ours) = logits[REFERENCE].shape, logits[name].shape
        if theirs != ours:
            raise ModelError(f"{folder}: has {ours} classes, the model in {model_dir} has {theirs}; export it again")
    rows: list[dict[str, Any]] = []
    for name, values in logits.items():
        family, found = families[name], Distance.between(logits[REFERENCE], values)
        problems = list(_problems(found, limits[family], texts))
        before = rows[-1]["form"] if rows else None
        step = {"form": before, **Distance.between(logits[before], values).to_json()} if before else None
        row = {"form": name, "family": family, "ok": not problems, **found.to_json(), "previous": step}
        rows.append({**row, "problems": [dataclasses.asdict(problem) for problem in problems]})
        log.say(f"parity: {name}: labels agree on {found.top1_agreement:.1%} of {len(texts)} texts")
    bad = next((row for row in rows if not row["ok"]), None)
    return {
        "reference": REFERENCE,
        "prompts": len(texts),
        "positions": len(texts),
        "tolerance": {family: dict(values) for family, values in limits.items()},
        "rows": rows,
        "first_bad": f"{bad['form']}: {bad['problems'][0]['message']}" if bad else None,
    }


@torch.no_grad()
def torch_logits(model_dir: Path, texts: Sequence[str]) -> np.ndarray:
    """(N, C) float64: each text by itself in the model of `model_dir`, in float32."""
    tokenizer: Any = load_tokenizer(model_dir)
    model = load_encoder(model_dir, AutoModelForSequenceClassification)
    inputs = [tokenizer(text, truncation=True, return_tensors="pt") for text in texts]
    return np.stack([np.asarray(model(**each).logits[0], np.float64) for each in inputs])


def load_encoder(model_dir: Path, auto: Any) -> Any:
    """The model of `model_dir` in float32 as the class that `auto`, one of transformers' AutoModel…, finds."""
    return auto.from_pretrained(
        model_dir, dtype=torch.float32, local_files_only=True, trust_remote_code=False, use_safetensors=True
    ).eval()


def _problems(found: Distance, limits: Mapping[str, float], texts: Sequence[str]) -> list[Problem]:
    # Written so that NaN fails.
    problems = []
    if not found.kl_mean <= limits["kl_mean"]:
        where = f"most on text {found.worst_kl} ({texts[found.worst_kl][:SHOWN]!r})"
        message = f"kl_mean {found.kl_mean:.2e}, limit {limits['kl_mean']:g}; {where}"
        problems.append(Problem("kl_mean", message, found.worst_kl))
    if not found.top1_agreement >= limits["top1"]:
        where = f"for one text {found.worst_label} ({texts[found.worst_label][:SHOWN]!r})"
        message = f"top1_agreement {found.top1_agreement:.3f}, limit {limits['top1']:g}; {where}"
        problems.append(Problem("top1_agreement", message, found.worst_label))
    return problems
