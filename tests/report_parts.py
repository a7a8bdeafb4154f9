"""A made-up run as `edgeft.report.build` takes it: every part there, numbers chosen to be told apart."""

from typing import Any

from edgeft.bench.calibration import reliability
from edgeft.bench.examples import Example
from edgeft.bench.gate import Measured, judge
from edgeft.bench.latency import Measurement, Run
from edgeft.bench.metrics import score_texts
from edgeft.bench.mistakes import confusion, find_mistakes, mixups
from edgeft.bench.slices import slice_tables

METRICS = ("exact_match", "json_valid", "json_field_f1")
REFERENCES = [f'{{"tool": "lights", "room": {i}}}' for i in range(20)]


def form(name: str, label: str, n_right: int, **fields: Any) -> dict[str, Any]:
    answers = REFERENCES[:n_right] + ["?"] * (20 - n_right)
    scores = [score.to_json() for score in score_texts(METRICS, answers, REFERENCES)]
    rest = {"n": 20, "scores": scores, "cut_by_length": 0, "prompts_too_long": 0, "note": "", "examples_sha256": "e1"}
    return {"form": name, "label": label} | rest | fields


def measured(file: str, n_right: int, size_bytes: int, gap_ms: float, **fields: Any) -> dict[str, Any]:
    """What bench.json holds of `file`."""
    host = {"cpu": "Some CPU @ 2 GHz", "n_cores": 2, "n_threads": 2, "backend": {"llama-cpp-python": "0.3"}}
    host |= {"load_average_before": 1.9, "load_average_after": 2.0}
    runs = [Run(0, 0, 50, 12.0, 10.0, [gap_ms, 2 * gap_ms])]
    latency = Measurement([45.0, 9.0], runs, 61_000_000, size_bytes, n_gen=3, left_out=1, host=host)
    return {"file": file, "accuracy": form("", "", n_right, **fields), "latency": latency.to_json()}


def parts() -> dict[str, Any]:
    verdict = judge(
        {"exact_match": ">= 0.90", "size_bytes": "<= 4MB", "kl_mean": "<= 0.02", "exact_match_drop": "<= 1%"},
        {
            "exact_match": Measured(0.95, 20, (0.764, 0.991)),
            "size_bytes": Measured(4.32e6),
            "exact_match_drop": Measured(0.0),
        },
    )
    split = {"examples": 1200, "tokens": 51234, "loss_tokens": 20000, "longest": 91, "dropped": 2, "truncated": 0}
    return {
        "recipe": {"name": "home-assistant", "method": "lora", "ship": "Q4_K_M", "seed": 42, "base": "edgeft/nano"},
        "data": {"train": split, "test": split},
        "data_check": [
            {"code": "E503", "count": 3, "what": "the same example in another split"},
            {"code": "W501", "count": 1200, "what": "exact duplicate"},
        ],
        "train": [{"step": i, "loss": 4.0 - i / 10, "tokens": 100, "seconds": 2.0} for i in range(1, 31)]
        + [{"step": 30, "eval_loss": 1.25}],
        "recover": [{"step": i, "loss": 0.5 - i / 100, "tokens": 100, "seconds": 1.0} for i in range(1, 9)],
        "recovered": {"file": "Q4_K_M", "kl_before": 0.0087, "kl_after": 0.0035},
        "distill": [{"step": i, "loss": 2.0 - i / 10, "tokens": 100, "seconds": 2.0} for i in range(1, 9)],
        "files": [
            {"file": "home-assistant-F16.gguf", "ftype": "F16", "bytes": 13_000_000, "sha256": "ab" * 32},
            {"file": "home-assistant-Q4_K_M.gguf", "ftype": "Q4_K_M", "bytes": 4_320_000, "sha256": "cd" * 32}
            | {"ships": True},
        ],
        "parity": {
            "rows": [
                {"form": "adapter (torch)", "ok": True},
                {"form": "Q4_K_M (llama.cpp)", "top1_agreement": 0.91, "kl_mean": 0.02, "kl_p99": 2.5}
                | {"greedy_prefix": 1.0, "ok": False},
            ],
            "first_bad": "Q4_K_M (llama.cpp): top-1 0.910 < 0.950",
        },
        "baseline": {
            "forms": [
                form("merged", "fine-tuned, torch", 19),
                form("base_zero_shot", "base, zero-shot", 0, note="first line only", cut_by_length=7),
                form("classical", "TF-IDF + nearest prompt", 9),
            ]
        },
        "bench": measured("home-assistant-Q4_K_M.gguf", 19, 4_320_000, 2.0, prompts_too_long=1, **detail()),
        "others": [measured("home-assistant-F16.gguf", 18, 13_000_000, 4.0)],
        "mistakes": mistakes(),
        "verdict": verdict.to_json(),
        "provenance": {"base": "edgeft/nano", "recipe_sha256": "ef" * 32, "packages": {"torch": "2"}}
        | {"artifacts": {"train": "12" * 32}},
        "settings": {"seed": 42, "train.lora.r": 32},
    }


def mistakes() -> dict[str, Any]:
    """Of the file of `parts`, which answers all but the last of 20 prompts."""
    answers = [*REFERENCES[:19], "?"]
    scores = score_texts(METRICS, answers, REFERENCES)
    predictions = [
        {"index": i, "text": answer, "reference": reference, "finish": "stop", "log_prob": -0.1}
        | {"outcomes": {score.metric: score.outcomes[i] for score in scores}}
        for i, (answer, reference) in enumerate(zip(answers, REFERENCES, strict=True))
    ]
    examples = [Example(({"role": "user", "content": f"play room {i}"},), text) for i, text in enumerate(REFERENCES)]
    places = [{"source": "test.jsonl", "line": 2 * i + 1} for i in range(20)]
    found = find_mistakes(predictions, METRICS, examples, places)
    pairs = [("on", "on")] * 7 + [("on", "off")] * 2 + [("off", "off")] * 9 + [("off", "of"), ("dim", "dim")]
    return found | {"mixups": mixups(pairs), "confusion": confusion(pairs)}


def detail() -> dict[str, Any]:
    """Slices by room, of twelve and eight examples, and the bins of a model that is too sure of itself."""
    examples = [Example(({"role": "user", "content": "q"},), text, fields={"room": "hall" if i < 12 else "den"})
                for i, text in enumerate(REFERENCES)]  # fmt: skip
    scores = score_texts(METRICS[:2], [*REFERENCES[:19], "?"], REFERENCES)
    outcomes = [float(i < 14) for i in range(20)]
    return {
        "slices": slice_tables(examples, scores, ["room"]),
        "reliability": reliability([0.5 + i / 40 for i in range(20)], outcomes),
    }
