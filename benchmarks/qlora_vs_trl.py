"""QLoRA at 2,048 tokens on an NVIDIA GPU, edgeft against TRL's SFTTrainer with peft: tokens a second and memory.

    python benchmarks/qlora_vs_trl.py --peer-path PEER [--shape llama-1b] [--steps 8] [--rounds 3]

PEER as in `sft_vs_trl.py`. Models have the shape of Llama 3.2 1B and 3B and random weights, stored in NF4 with double
quantization; r = 16 on all linear layers. The data are conversations of random ids whose length is log-normal (median
600 tokens, sigma 0.8, 32 to 2,048), the last 20 to 80 % of each carrying loss; every contender trains on the same ones
once, `--steps` times sixteen of them. Rates count real tokens. Each run is a process of its own, contenders take turns;
seconds are those of the training, without imports, making the model and one step to warm up. Peak memory is what torch
allocated on the device. `peak_share` is the share of the bf16 products a second that this device reaches on `GEMM`,
with 4 operations a weight and token for the frozen layers (6 where activations are computed again) and the head only
where a token carries loss.

Contenders:
  trl            SFTTrainer as it comes: bfloat16 autocast, checkpointing, padded batches of 8
  trl-best       packing to rows of 2,048, two rows at a time, no checkpointing
  edgeft         packed, no checkpointing
  edgeft-recompute  the same, every layer's activations computed again in the backward pass

Without a GPU it runs, on the shape `tiny`, to show that it works; its numbers mean nothing then.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from peers import HERE, RESULT, SHAPES, medians_and_ratios, race
from sft_vs_trl import LEARNING_RATE, SEED, make_examples

LLAMA = {"num_key_value_heads": 8, "intermediate_size": 8192, "vocab_size": 128_256}
GPU_SHAPES = {
    "llama-1b": {"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, **LLAMA},
    "llama-3b": {"hidden_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 24, **LLAMA},
    "tiny": SHAPES["tiny"],
}
OPTIONS = ("shape", "steps", "threads", "micro_batch_tokens")
CONTENDERS = ("trl", "trl-best", "edgeft", "edgeft-recompute")
LENGTH = {"median": 600, "sigma": 0.8, "least": 32, "most": 2048}
BATCH = 16
GEMM = (8192, 4096, 8192)


def save_model(shape: str, folder: Path) -> None:
    """The shape with random weights in bfloat16, as a folder both sides load from."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    sys.path.insert(0, str(HERE.parent))
    from tests.tiny import tiny_tokenizer

    torch.manual_seed(SEED)
    config = LlamaConfig(
        **GPU_SHAPES[shape], max_position_embeddings=4096, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2,
        pad_token_id=0,
    )  # fmt: skip
    torch.set_default_dtype(torch.bfloat16)
    try:
        LlamaForCausalLM(config).save_pretrained(folder)
    finally:
        torch.set_default_dtype(torch.float32)
    tiny_tokenizer().save_pretrained(folder)


def run_edgeft(arguments: argparse.Namespace, folder: Path, examples: list[dict[str, list[int]]]) -> dict[str, Any]:
    """One training as `edgeft train` does it with method qlora."""
    import numpy as np
    import torch

    from edgeft.console import silent_log
    from edgeft.sections import Lora, Train
    from edgeft.training.activation_checkpointing import apply_checkpointing
    from edgeft.training.adapters import attach_lora, nf4_config
    from edgeft.training.attention import use_packed_attention
    from edgeft.training.batches import TokenSet
    from edgeft.training.fused_lora import fuse_lora
    from edgeft.training.keeping import SaveRule
    from edgeft.training.loop import LoopConfig, train_loop
    from edgeft.training.losses import next_token_loss_sum
    from edgeft.training.memory import keep_freed_memory
    from edgeft.training.models import load_model
    from edgeft.training.optim import make_adamw

    keep_freed_memory()
    model = load_model(folder, "bfloat16", quantization_config=nf4_config("bfloat16"))
    use_packed_attention(model)
    tuned = attach_lora(model, Lora())
    fuse_lora(tuned)
    if arguments.run == "edgeft-recompute":
        apply_checkpointing(tuned, model.config.num_hidden_layers)
    tokens = TokenSet.build([(e["input_ids"], [label != -100 for label in e["labels"]]) for e in examples])
    optimizer = make_adamw(tuned.parameters(), Train(learning_rate=LEARNING_RATE, weight_decay=0.0))
    config = LoopConfig(
        learning_rate=LEARNING_RATE, lr_scheduler_type="constant", warmup_steps=0, max_grad_norm=1.0,
        micro_batch_tokens=arguments.micro_batch_tokens, save=SaveRule(None), autocast=torch.bfloat16,
    )  # fmt: skip
    plan = [np.arange(at, at + BATCH) for at in range(0, len(examples), BATCH)]
    with tempfile.TemporaryDirectory() as out:
        clock = Clock()
        train_loop(tuned, optimizer, tokens, plan, next_token_loss_sum, config, out=Path(out), log=silent_log())
        measured = clock.read()
        rows = [json.loads(line) for line in (Path(out) / "log.jsonl").read_text().splitlines()]
    again = 2 if arguments.run == "edgeft-recompute" else 0
    operations = (4 + again) * linear_weights(arguments.shape) * int(tokens.offsets[-1])
    operations += 4 * model.get_output_embeddings().weight.numel() * int(tokens.loss_mask.sum())
    peak = gemm_rate()
    return measured | {
        "losses": [row["loss"] for row in rows],
        "peak_share": operations / measured["seconds"] / peak,
        "gemm_tflops": peak / 1e12,
    }


def run_trl(arguments: argparse.Namespace, folder: Path, examples: list[dict[str, list[int]]]) -> dict[str, Any]:
    """One training by TRL; it is handed the ids, so that no one's tokenizer is measured."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    from edgeft.training.adapters import nf4_config

    options: dict[str, dict[str, Any]] = {
        "trl": {"per_device_train_batch_size": 8, "gradient_accumulation_steps": BATCH // 8},
        # Four rows of 2,048 hold about as many tokens as sixteen padded conversations.
        "trl-best": {
            "gradient_checkpointing": False, "packing": True, "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
        },
    }  # fmt: skip
    on_gpu = torch.cuda.is_available()
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, quantization_config=nf4_config("bfloat16"), device_map={"": 0} if on_gpu else None
    )
    with tempfile.TemporaryDirectory() as out:
        config = SFTConfig(
            output_dir=out, num_train_epochs=1, learning_rate=LEARNING_RATE, lr_scheduler_type="constant",
            save_strategy="no", report_to=[], disable_tqdm=True, use_cpu=not on_gpu, max_length=LENGTH["most"],
            logging_steps=1, dataloader_pin_memory=False, **options[arguments.run],
        )  # fmt: skip
        trainer = SFTTrainer(
            model=model,
            args=config,
            train_dataset=Dataset.from_list(examples),
            processing_class=AutoTokenizer.from_pretrained(folder),
            peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
        )
        clock = Clock()
        trainer.train()
        measured = clock.read()
    return measured | {"losses": [row["loss"] for row in trainer.state.log_history if "loss" in row]}


class Clock:
    """Seconds since it was made, everything on the device finished."""

    def __init__(self) -> None:
        self.began = self._now()

    def read(self) -> dict[str, float]:
        return {"seconds": self._now() - self.began}

    def _now(self) -> float:
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()


def linear_weights(shape: str) -> int:
    """Weights of all layers' matrices."""
    sizes = GPU_SHAPES[shape]
    hidden, width = sizes["hidden_size"], sizes["hidden_size"] // sizes["num_attention_heads"]
    attention = 2 * hidden * width * (sizes["num_attention_heads"] + sizes["num_key_value_heads"])
    return sizes["num_hidden_layers"] * (attention + 3 * hidden * sizes["intermediate_size"])


def gemm_rate() -> float:
    """Operations per second of the bfloat16 matrix product `GEMM` (a sixteenth of each side without a GPU)."""
    import torch

    on_gpu = torch.cuda.is_available()
    rows, inner, columns = GEMM if on_gpu else tuple(side // 16 for side in GEMM)
    device = "cuda" if on_gpu else "cpu"
    x = torch.randn(rows, inner, device=device, dtype=torch.bfloat16)
    w = torch.randn(columns, inner, device=device, dtype=torch.bfloat16)
    best = float("inf")
    for _ in range(10):
        clock = Clock()
        torch.nn.functional.linear(x, w)
        best = min(best, clock.read()["seconds"])
    return 2.0 * rows * inner * columns / best


def child(arguments: argparse.Namespace) -> None:
    import torch

    from edgeft.machine.process import peak_rss_bytes

    torch.set_num_threads(arguments.threads)
    on_gpu = torch.cuda.is_available()
    run = run_trl if arguments.run.startswith("trl") else run_edgeft
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        save_model(arguments.shape, folder)
        examples = make_examples(arguments.steps * BATCH, GPU_SHAPES[arguments.shape]["vocab_size"], LENGTH)
        if on_gpu:  # kernels are chosen and loaded
            run(arguments, folder, examples[:BATCH])
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        result = run(arguments, folder, examples)
    tokens = sum(len(e["input_ids"]) for e in examples)
    peak = torch.cuda.max_memory_allocated() if on_gpu else peak_rss_bytes()
    result |= {
        "tokens": tokens,
        "loss_tokens": sum(label != -100 for e in examples for label in e["labels"]),
        "tokens_per_s": tokens / result["seconds"],
        "peak_rss_mb" if not on_gpu else "peak_device_mb": peak / 1e6,
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
    }
    print(RESULT + json.dumps(result))


def compare(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians of each contender and the ratios of ours to the peers'."""
    memory = next(name for name in ("peak_device_mb", "peak_rss_mb") if name in runs[0])
    kept = ("seconds", "tokens_per_s", memory, "peak_share")
    return medians_and_ratios(runs, kept, {"speed": "tokens_per_s"}, memory={memory.removesuffix("_mb"): memory})


def plan(arguments: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """The result file, and settings that are no options."""
    further = {"batch": BATCH, "learning_rate": LEARNING_RATE, "length": LENGTH, "peer": "trl 1.16.0"}
    return f"qlora_vs_trl_{arguments.shape}.json", further


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=GPU_SHAPES, default="llama-1b")
    parser.add_argument("--steps", type=int, default=8, help=f"optimizer steps of {BATCH} conversations")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--micro-batch-tokens", type=int, default=8192)
    race(__file__, parser, CONTENDERS, OPTIONS, child=child, compare=compare, plan=plan)


if __name__ == "__main__":
    main()
