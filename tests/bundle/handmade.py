"""The artifacts of a run, written by hand in the formats of the stages: a second, without torch."""

import json
from pathlib import Path
from typing import Any

from edgeft.artifact import write_manifest

SYSTEM = "Answer with one word."
LABELS = ("off", "on")
SCORE = {"metric": "label_accuracy", "value": 0.9, "n": 20, "ci95": [0.7, 0.97], "interval": "wilson", "detail": {}}
BENCH = {
    "format": 1, "file": "home-Q8_0.gguf", "metrics": {"label_accuracy": 0.9, "energy_j_per_token": 0.0123},
    "accuracy": {"n": 20, "scores": [SCORE], "cut_by_length": 0, "prompts_too_long": 0},
    "latency": {"energy": {"joules": 1.5, "sources": ["RAPL package-0"], "absent": ""}},
}  # fmt: skip
REPORT = "# home\n\n## Accuracy\n\n|  | n | label_accuracy |\n|---|---:|---:|\n| file | 20 | 0.900 [0.700, 0.970] |\n"
CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def make_run(folder: Path, *, model: bytes = b"GGUF weights", passed: bool | None = None, **changes: Any) -> Path:
    """A run in `folder` whose shipping file has the bytes `model`; returns the folder.

    `changes`: `generation` and `config` of the model, `base` of its provenance, `entries` and `exported`
    files, `others` measured beside the one that ships.
    """
    chat = [
        {"messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": f"turn {answer}"},
                      {"role": "assistant", "content": answer}]}
        for answer in LABELS
    ]  # fmt: skip
    lines = "".join(json.dumps(row) + "\n" for row in chat).encode()
    data = stage(folder, "data", {f"{split}.jsonl": lines for split in ("train", "validation", "test")}, {}, {
        "recipe data.max_length": 128, "file data.train": "aa" * 32, "file model.base": "bb" * 32,
        "package tokenizers": "0.23.3",
    })  # fmt: skip
    provenance = {"base": changes.get("base", "edgeft/nano"), "base_sha256": "cc" * 32, "seed": 1}
    adapter = {"adapter/adapter_config.json": b"{}", "adapter/adapter_model.safetensors": b"low rank"}
    train = stage(folder, "train", {"log.jsonl": b"{}\n", **adapter}, {}, {"stage data": data})
    merge = stage(
        folder, "merge",
        {
            "config.json": CONFIG | changes.get("config", {}), "tokenizer.json": {"model": {}},
            "tokenizer_config.json": {}, "generation_config.json": changes.get("generation", {}),
            "chat_template.jinja": TEMPLATE.encode(), "provenance.json": provenance, "model.safetensors": b"weights",
        },
        {}, {"stage data": data, "stage train": train, "package torch": "2.13.0+cpu"},
    )  # fmt: skip
    entries = changes.get("entries") or [
        {"file": "home-F16.gguf", "format": "gguf", "ftype": "F16", "bytes": 4, "fallbacks": {}},
        {"file": "home-Q8_0.gguf", "format": "gguf", "ftype": "Q8_0", "bytes": len(model), "fallbacks": {}},
    ]
    exported = changes.get("exported") or {"home-F16.gguf": b"GGUF", "home-Q8_0.gguf": model}
    export = stage(
        folder, "export", {"files.json": entries, **exported}, {},
        {"stage data": data, "stage merge": merge, "recipe name": "home", "recipe export.ship": None},
    )  # fmt: skip
    bench = stage(folder, "bench", {"bench.json": BENCH, "others.json": changes.get("others", [])}, {}, {
        "stage data": data, "stage export": export, "recipe bench.metrics": ["label_accuracy"],
        "recipe bench.max_new_tokens": 8, "recipe bench.n_ctx": 256, "recipe bench.json_schema.type": "string",
    })  # fmt: skip
    if passed is not None:
        verdict = {"passed": passed, "rows": [{"metric": "label_accuracy", "ok": passed}]}
        stage(folder, "gate", {"verdict.json": verdict}, {}, {"stage bench": bench})
    stage(folder, "report", {"report.json": {"format": 1}, "report.md": REPORT.encode()}, {}, {"stage bench": bench})
    return folder


def stage(folder: Path, name: str, files: dict[str, Any], metrics: dict[str, float], made_from: dict[str, Any]) -> str:
    """Write one artifact; returns its key."""
    for file, content in files.items():
        path = folder / name / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return write_manifest(folder / name, name, name * 4, metrics, made_from).key
