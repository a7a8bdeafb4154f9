"""Bits per byte of edgeft-nano and three other tiny models on held-out TinyStories.

    python benchmarks/nano_bits_per_byte.py [--out benchmarks/results/nano_bits_per_byte.json]

The text is the last tenth of $EDGEFT_SHARED/data/tinystories_sample/stories.jsonl, which edgeft-nano's corpus
leaves out. Bits per byte compares models with different tokenizers: the negative log-likelihood of all tokens
of a story in bits, over its UTF-8 bytes. A story longer than a model's context is scored in windows that
overlap by half, so that every token but the first few has at least half a context before it.
"""

import argparse
import importlib
import json
import math
import os
import platform
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("EDGEFT_SHARED") or ROOT.parent / "shared")
MODELS = {
    "edgeft-nano": ROOT / "edgeft/assets/nano",
    "stories260K": SHARED / "models/stories260K",
    "babyllama105": SHARED / "models/babyllama105",
    "bitnet-tinystories-3m": SHARED / "models/bitnet-tinystories-3m",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/nano_bits_per_byte.json")
    parser.add_argument("--nano", type=Path, default=MODELS["edgeft-nano"], help="another folder for edgeft-nano")
    arguments = parser.parse_args()
    stories = _held_out()
    result = {
        "text": "last tenth of tinystories_sample/stories.jsonl",
        "stories": len(stories),
        "bytes": sum(len(s.encode()) for s in stories),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "models": {},
    }
    for name, folder in {**MODELS, "edgeft-nano": arguments.nano}.items():
        result["models"][name] = bits_per_byte(folder, stories)
        print(name, json.dumps(result["models"][name]))
    arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def _held_out() -> list[str]:
    sys.path.insert(0, str(ROOT / "recipes/nano"))
    corpus = importlib.import_module("corpus")
    lines = (SHARED / "data/tinystories_sample/stories.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines[-corpus.HELD_OUT_STORIES :]]


@torch.no_grad()
def bits_per_byte(folder: Path, stories: list[str]) -> dict[str, float]:
    """The model's bits per byte, parameters and tokens per byte. A token the vocabulary lacks costs what the
    model gives to its `<unk>`, which flatters character models a little (babyllama105 has no newline)."""
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    model.eval()
    window = min(model.config.max_position_embeddings, 512)
    nats, n_tokens = 0.0, 0
    for story in stories:
        ids = [tokenizer.bos_token_id, *tokenizer.encode(story, add_special_tokens=False)]
        nats += _story_nats(model, ids, window)
        n_tokens += len(ids) - 1
    n_bytes = sum(len(s.encode()) for s in stories)
    return {
        "bits_per_byte": round(nats / math.log(2) / n_bytes, 4),
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens_per_byte": round(n_tokens / n_bytes, 4),
    }


def _story_nats(model: PreTrainedModel, ids: list[int], window: int) -> float:
    total, scored = 0.0, 1
    for start in range(0, max(1, len(ids) - 1), window // 2):
        piece = torch.tensor([ids[start : start + window]])
        if start + piece.shape[1] <= scored:
            break
        log_p = torch.log_softmax(model(input_ids=piece).logits[0, :-1].double(), dim=-1)
        token_nats = -log_p[torch.arange(piece.shape[1] - 1), piece[0, 1:]]
        total += token_nats[scored - start - 1 :].sum().item()
        scored = start + piece.shape[1]
    return total


if __name__ == "__main__":
    main()
