"""Distillation from a cached teacher, edgeft against TRL's GKDTrainer: seconds of an epoch, peak memory, losses.

    pip install --no-deps --target PEER trl==1.16.0 accelerate==1.15.0 datasets==5.2.0 pandas==3.1.1 \\
        dill==0.4.1 multiprocess==0.70.19 xxhash==4.1.0 tzdata==2026.6 python-dateutil==2.9.0.post0 six==1.17.0
    python benchmarks/distill_vs_trl.py --peer-path PEER

A student of SmolLM2-135M's shape learns, every weight, from a teacher of SmolLM2-360M's; both have random weights, and
see the same examples in the same batches with the same learning rate. Lengths are log-normal: prompts with a median of
160 tokens, answers of 64. An optimizer step takes 8 examples, the batch size TRL's trainers come with: TRL has them
in one padded batch, edgeft in packed rows of at most `--micro-batch-tokens`, whose gradients add up. Loss is taken
over answers: KL(teacher ‖ student) over the vocabulary, at temperature 1. Two epochs: an epoch's seconds are those of
the second, in which edgeft reads what it cached before the first; making the cache is counted apart. Peak memory is
of the whole process, the cache made in it. Each run is a process of its own, and the contenders take turns.

On random weights 64 tokens say little of the teacher: what the cache loses is measured on a trained one, by
benchmarks/distill_gain.py. Here losses are compared where all tokens are known.

Contenders:
  trl           GKDTrainer as it comes: bfloat16 autocast, gradient checkpointing, teacher in every step (lmbda 0)
  trl-fp32      the same in float32: its losses are the yardstick for edgeft-live
  trl-fp32-best  float32, no checkpointing: its best where bfloat16 products are slow
  edgeft-live   float32, teacher in every step
  edgeft        float32, 64 tokens cached
  edgeft-bf16   the same, products in bfloat16
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from peers import RESULT, SHAPES, by_contender, medians_and_ratios, race

HERE = Path(__file__).resolve().parent
OPTIONS = ("shape", "steps", "batch", "threads", "micro_batch_tokens", "top_k")
CONTENDERS = ("trl", "trl-fp32", "trl-fp32-best", "edgeft-live", "edgeft", "edgeft-bf16")
TEACHERS = {
    "smollm2-135m": {
        "hidden_size": 960, "num_hidden_layers": 32, "num_attention_heads": 15, "num_key_value_heads": 5,
        "intermediate_size": 2560, "vocab_size": 49_152,
    },
    "tiny": SHAPES["tiny"] | {"hidden_size": 128, "num_hidden_layers": 4},
}  # fmt: skip
LENGTHS = {"prompt": (160, 0.6, 32, 512), "answer": (64, 0.6, 8, 256)}
EPOCHS, LEARNING_RATE, SEED = 2, 1e-4, 7


def make_examples(n: int, vocabulary: int) -> list[tuple[list[int], list[int]]]:
    """(prompt, answer) ids with the lengths of `LENGTHS`; the same for everyone."""
    import numpy as np

    rng = np.random.default_rng(SEED)

    def ids(kind: str) -> list[int]:
        median, sigma, low, high = LENGTHS[kind]
        return rng.integers(3, vocabulary, int(np.clip(rng.lognormal(np.log(median), sigma), low, high))).tolist()

    return [(ids("prompt"), ids("answer")) for _ in range(n)]


def make_model(shape: dict[str, int], seed: int) -> Any:
    """The shape with random weights, the same for a seed."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(**shape, max_position_embeddings=2048, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2,
                    pad_token_id=0)
    )  # fmt: skip


def run_edgeft(arguments: argparse.Namespace, examples: list[tuple[list[int], list[int]]], out: Path) -> dict[str, Any]:
    """One training as `edgeft run` does it."""
    import numpy as np
    import torch

    from edgeft.console import silent_log
    from edgeft.training.attention import use_packed_attention
    from edgeft.training.batches import TokenSet
    from edgeft.training.distill_losses import Objective, Teacher, distillation_loss_sum
    from edgeft.training.keeping import SaveRule
    from edgeft.training.loop import LoopConfig, train_loop
    from edgeft.training.memory import keep_freed_memory
    from edgeft.training.teacher_cache import CacheRequest, cache_teacher

    keep_freed_memory()
    vocabulary = SHAPES[arguments.shape]["vocab_size"]
    tokens: Any = TokenSet.build([(p + a, [False] * len(p) + [True] * len(a)) for p, a in examples])
    half = arguments.run == "edgeft-bf16"

    def load_teacher() -> Teacher:
        teacher = make_model(TEACHERS[arguments.shape], SEED + 1).to(torch.bfloat16 if half else torch.float32)
        use_packed_attention(teacher)
        return Teacher(teacher, vocabulary)

    began = time.perf_counter()
    live = load_teacher() if arguments.run == "edgeft-live" else None
    if live is None:
        request = CacheRequest("teacher", vocabulary, top_k=arguments.top_k)
        tokens = cache_teacher(out, tokens, request, load_teacher, silent_log())
    cache_seconds = time.perf_counter() - began
    student = make_model(SHAPES[arguments.shape], SEED)
    use_packed_attention(student)
    plan = [np.arange(at, at + arguments.batch) for at in range(0, len(examples), arguments.batch)] * EPOCHS
    config = LoopConfig(
        learning_rate=LEARNING_RATE, lr_scheduler_type="constant", warmup_steps=0, max_grad_norm=1.0,
        micro_batch_tokens=arguments.micro_batch_tokens, save=SaveRule(None), autocast=torch.bfloat16 if half else None,
        divergence=None,
    )  # fmt: skip
    optimizer = torch.optim.AdamW(student.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True)
    loss_sum = distillation_loss_sum(Objective(), vocabulary, live)
    train_loop(student, optimizer, tokens, plan, loss_sum, config, out=out, log=silent_log())
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    result = {
        "epoch_seconds": sum(row["seconds"] for row in rows[-arguments.steps :]),
        "cache_seconds": cache_seconds,
        "losses": [row["loss"] for row in rows],
    }
    if live is None:
        result |= {"bytes_per_token": tokens.bytes_per_token, "cache_bytes": tokens.n_bytes}
    return result


def run_trl(arguments: argparse.Namespace, examples: list[tuple[list[int], list[int]]], out: Path) -> dict[str, Any]:
    """One training by TRL; it is handed the ids, so that no one's tokenizer is measured."""
    import torch
    from datasets import Dataset
    from torch.utils.data import SequentialSampler
    from transformers import TrainerCallback
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    sys.path.insert(0, str(HERE.parent))
    from tests.tiny import tiny_tokenizer

    losses: list[float] = []
    ends: list[float] = []

    class Trainer(GKDTrainer):
        def _get_train_sampler(self, dataset: Any = None) -> Any:
            return SequentialSampler(dataset if dataset is not None else self.train_dataset)

        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().compute_loss(*args, **kwargs)
            losses.append(loss.item())
            return loss

    class EpochEnds(TrainerCallback):
        def on_epoch_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        longest = max(len(row["prompt"]) + len(row["answer"]) for row in rows)
        batch = {name: torch.zeros(len(rows), longest, dtype=torch.long) for name in ("input_ids", "attention_mask")}
        batch["labels"] = torch.full((len(rows), longest), -100)
        for at, row in enumerate(rows):
            start, end = len(row["prompt"]), len(row["prompt"]) + len(row["answer"])
            batch["input_ids"][at, :end] = torch.tensor(row["prompt"] + row["answer"])
            batch["attention_mask"][at, :end] = 1
            batch["labels"][at, start:end] = torch.tensor(row["answer"])
        return batch

    options: dict[str, dict[str, Any]] = {
        "trl": {},
        "trl-fp32": {"bf16": False},
        "trl-fp32-best": {"bf16": False, "gradient_checkpointing": False},
    }
    config = GKDConfig(
        output_dir=str(out), per_device_train_batch_size=arguments.batch, num_train_epochs=EPOCHS, beta=0.0, lmbda=0.0,
        temperature=1.0, learning_rate=LEARNING_RATE, lr_scheduler_type="constant", save_strategy="no", report_to=[],
        disable_tqdm=True, use_cpu=True, max_length=None, dataloader_pin_memory=False, max_grad_norm=1.0,
        weight_decay=0.0, **options[arguments.run],
    )  # fmt: skip
    trainer = Trainer(
        model=make_model(SHAPES[arguments.shape], SEED),
        teacher_model=make_model(TEACHERS[arguments.shape], SEED + 1),
        args=config,
        data_collator=collate,
        train_dataset=Dataset.from_list([{"prompt": prompt, "answer": answer} for prompt, answer in examples]),
        processing_class=tiny_tokenizer(),
        callbacks=[EpochEnds()],
    )
    trainer.train()
    return {"epoch_seconds": ends[-1] - ends[-2], "losses": losses}


def child(arguments: argparse.Namespace) -> None:
    import torch

    from edgeft.machine.process import peak_rss_bytes

    torch.set_num_threads(arguments.threads)
    examples = make_examples(arguments.steps * arguments.batch, SHAPES[arguments.shape]["vocab_size"])
    run = run_trl if arguments.run.startswith("trl") else run_edgeft
    with tempfile.TemporaryDirectory() as folder:
        result = run(arguments, examples, Path(folder))
    tokens = sum(len(prompt) + len(answer) for prompt, answer in examples)
    result |= {"tokens_per_s": tokens / result["epoch_seconds"], "peak_rss_mb": peak_rss_bytes() / 1e6}
    print(RESULT + json.dumps(result))


def compare(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians, ratios, and the largest relative difference of the losses over all tokens in float32."""
    kept = ("epoch_seconds", "cache_seconds", "tokens_per_s", "peak_rss_mb", "bytes_per_token")
    result = medians_and_ratios(runs, kept, {"speed": "tokens_per_s"})
    by_name = by_contender(runs)
    if "edgeft-live" in by_name and "trl-fp32" in by_name:
        ours, theirs = by_name["edgeft-live"][0]["losses"], by_name["trl-fp32"][0]["losses"]
        result["loss_difference"] = max(abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True))
    return result


def plan(arguments: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """The result file, and settings that are no options."""
    further = {
        "epochs": EPOCHS,
        "learning_rate": LEARNING_RATE,
        "lengths": LENGTHS,
        "teacher": TEACHERS[arguments.shape],
        "peer": "trl 1.16.0",
    }
    return "distill_vs_trl.json" if arguments.shape != "tiny" else "distill_tiny.json", further


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=TEACHERS, default="smollm2-135m")
    parser.add_argument("--steps", type=int, default=3, help="optimizer steps in one epoch")
    parser.add_argument("--batch", type=int, default=8, help="examples in one optimizer step")
    parser.add_argument("--repeats", dest="rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--top-k", type=int, default=64, help="tokens cached at each position")
    parser.add_argument("--micro-batch-tokens", type=int, default=1024)
    race(__file__, parser, CONTENDERS, OPTIONS, child=child, compare=compare, plan=plan)


if __name__ == "__main__":
    main()
