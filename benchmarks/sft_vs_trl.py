"""Fine-tuning with LoRA, edgeft against TRL's SFTTrainer with peft: real tokens a second and peak memory.

    pip install --no-deps --target PEER trl==1.16.0 accelerate==1.15.0 datasets==5.2.0 pandas==3.1.1 \\
        dill==0.4.1 multiprocess==0.70.19 xxhash==4.1.0 tzdata==2026.6 python-dateutil==4.0.0 six==1.17.0
    python benchmarks/sft_vs_trl.py --peer-path PEER [--shape smollm2-135m] [--steps 4] [--rounds 2]

(With `--no-deps`, because the peers' own pins would replace the project's.)

Models have the shape of a published one and random weights; r = 16 on all linear layers. The data are
conversations of random ids whose length is log-normal (median 180 tokens, sigma 0.8, 16 to 1,024), the last 20 to
80 % of each carrying loss. Every contender trains on the same conversations once, with the same loss tokens:
`--steps` times eight of them. Rates count real tokens: no padding. Each run is a process of its own, contenders
take turns, and seconds are those of the training without imports and making the model. `cpu_tokens_per_s` counts
processor time in their place, for machines that do other work. `gemm_share` is the share of the bf16 (fp32) matrix
products a second that this processor reaches on (2048, 576) by (576, 1536), counting 4 operations a weight and
token for the frozen layers and the head only where a token carries loss.

Contenders:
  trl          SFTTrainer as it comes: float32 weights, bfloat16 autocast, checkpointing, padded batches of 8
  trl-fp32     the same without autocast and checkpointing
  trl-best     packing, bfloat16 weights, no checkpointing
  trl-fp32-packed  packing, float32, no checkpointing: its best where bfloat16 products are slow
  edgeft       bfloat16 weights, float32 adapters
  edgeft-fp32  float32
  edgeft-recompute  as edgeft, every layer's activations computed again in the backward pass
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from peers import RESULT, SHAPES, medians_and_ratios, race

HERE = Path(__file__).resolve().parent
OPTIONS = ("shape", "steps", "threads", "micro_batch_tokens")
CONTENDERS = ("trl", "trl-fp32", "trl-best", "trl-fp32-packed", "edgeft", "edgeft-fp32", "edgeft-recompute")
DEFAULT = ("trl", "trl-best", "edgeft")
LENGTH = {"median": 180, "sigma": 0.8, "least": 16, "most": 1024}
BATCH, LEARNING_RATE, SEED = 8, 1e-4, 7
GEMM = (2048, 576, 1536)


def make_examples(n: int, vocabulary: int, lengths: dict[str, Any] = LENGTH) -> list[dict[str, list[int]]]:
    """Random ids with log-normal `lengths`, and labels, -100 where nothing is learned; the same for everyone."""
    import numpy as np

    rng = np.random.default_rng(SEED)
    examples = []
    for _ in range(n):
        drawn = rng.lognormal(np.log(lengths["median"]), lengths["sigma"])
        length = int(np.clip(drawn, lengths["least"], lengths["most"]))
        ids = rng.integers(3, vocabulary, length).tolist()
        prompt = max(1, int(length * rng.uniform(0.2, 0.8)))
        examples.append({"input_ids": ids, "labels": [-100] * prompt + ids[prompt:]})
    return examples


def make_model(shape: str, dtype: str) -> Any:
    """The shape with random weights, made in `dtype`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(SEED)
    config_class, model_class = LlamaConfig, LlamaForCausalLM
    if shape.startswith("qwen"):
        config_class, model_class = Qwen2Config, Qwen2ForCausalLM
    config = config_class(
        **SHAPES[shape], max_position_embeddings=2048, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2,
        pad_token_id=0,
    )  # fmt: skip
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        return model_class(config)
    finally:
        torch.set_default_dtype(before)


def run_edgeft(arguments: argparse.Namespace, examples: list[dict[str, list[int]]], out: Path) -> dict[str, Any]:
    """One training as `edgeft train` does it."""
    import numpy as np
    import torch

    from edgeft.console import silent_log
    from edgeft.sections import Lora
    from edgeft.training.activation_checkpointing import apply_checkpointing
    from edgeft.training.adapters import attach_lora
    from edgeft.training.attention import use_packed_attention
    from edgeft.training.batches import TokenSet
    from edgeft.training.fused_lora import fuse_lora
    from edgeft.training.keeping import SaveRule
    from edgeft.training.loop import LoopConfig, train_loop
    from edgeft.training.losses import next_token_loss_sum
    from edgeft.training.memory import keep_freed_memory

    keep_freed_memory()
    half = arguments.run != "edgeft-fp32"
    model = make_model(arguments.shape, "bfloat16" if half else "float32")
    use_packed_attention(model)
    tuned = attach_lora(model, Lora())
    fuse_lora(tuned)
    if arguments.run == "edgeft-recompute":
        apply_checkpointing(tuned, model.config.num_hidden_layers)
    tokens = TokenSet.build([(e["input_ids"], [label != -100 for label in e["labels"]]) for e in examples])
    trained = [p for p in tuned.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.0)
    config = LoopConfig(
        learning_rate=LEARNING_RATE, lr_scheduler_type="constant", warmup_steps=0, max_grad_norm=1.0,
        micro_batch_tokens=arguments.micro_batch_tokens, save=SaveRule(None),
        autocast=torch.bfloat16 if half else None,
    )  # fmt: skip
    plan = [np.arange(at, at + BATCH) for at in range(0, len(examples), BATCH)]
    clock = Clock()
    train_loop(tuned, optimizer, tokens, plan, next_token_loss_sum, config, out=out, log=silent_log())
    measured = clock.read()
    frozen = sum(p.numel() for n, p in model.named_parameters() if "layers" in n and "lora_" not in n)
    operations = 4.0 * frozen * int(tokens.offsets[-1])
    operations += 4.0 * model.get_output_embeddings().weight.numel() * int(tokens.loss_mask.sum())
    peak = gemm_rate(torch.bfloat16 if half else torch.float32)
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return measured | {
        "losses": [row["loss"] for row in rows],
        "gemm_share": operations / measured["cpu_seconds"] / peak,
        "gemm_gflops": peak / 1e9,
    }


def run_trl(arguments: argparse.Namespace, examples: list[dict[str, list[int]]], out: Path) -> dict[str, Any]:
    """One training by TRL; it is handed the ids, so that no one's tokenizer is measured."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    sys.path.insert(0, str(HERE.parent))
    from tests.tiny import tiny_tokenizer

    options: dict[str, dict[str, Any]] = {
        "trl": {},
        "trl-fp32": {"bf16": False, "gradient_checkpointing": False},
        # Two rows of 1,024 tokens hold about as many real tokens as eight padded conversations.
        "trl-best": {"gradient_checkpointing": False, "packing": True, "per_device_train_batch_size": 2},
        "trl-fp32-packed": {
            "bf16": False, "gradient_checkpointing": False, "packing": True, "per_device_train_batch_size": 2,
        },
    }  # fmt: skip
    model = make_model(arguments.shape, "bfloat16" if arguments.run == "trl-best" else "float32")
    chosen = {"per_device_train_batch_size": BATCH} | options[arguments.run]
    config = SFTConfig(
        output_dir=str(out), num_train_epochs=1, learning_rate=LEARNING_RATE, lr_scheduler_type="constant",
        save_strategy="no", report_to=[], disable_tqdm=True, use_cpu=True, max_length=LENGTH["most"],
        logging_steps=1, dataloader_pin_memory=False, **chosen,
    )  # fmt: skip
    trainer = SFTTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_list(examples),
        processing_class=tiny_tokenizer(),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    clock = Clock()
    trainer.train()
    return clock.read() | {"losses": [row["loss"] for row in trainer.state.log_history if "loss" in row]}


class Clock:
    """Wall seconds and processor seconds of this process since it was made."""

    def __init__(self) -> None:
        self.began, self.cpu = time.perf_counter(), time.process_time()

    def read(self) -> dict[str, float]:
        return {"seconds": time.perf_counter() - self.began, "cpu_seconds": time.process_time() - self.cpu}


def gemm_rate(dtype: Any) -> float:
    """Operations per processor second of the matrix product `GEMM`, best of five."""
    import torch

    rows, inner, columns = GEMM
    x, w = torch.randn(rows, inner).to(dtype), torch.randn(columns, inner).to(dtype)
    best = float("inf")
    for _ in range(6):
        began = time.process_time()
        torch.nn.functional.linear(x, w)
        best = min(best, time.process_time() - began)
    return 2.0 * rows * inner * columns / best


def child(arguments: argparse.Namespace) -> None:
    import torch

    from edgeft.machine.process import peak_rss_bytes

    torch.set_num_threads(arguments.threads)
    examples = make_examples(arguments.steps * BATCH, SHAPES[arguments.shape]["vocab_size"])
    run = run_trl if arguments.run.startswith("trl") else run_edgeft
    with tempfile.TemporaryDirectory() as folder:
        result = run(arguments, examples, Path(folder))
    tokens = sum(len(e["input_ids"]) for e in examples)
    result |= {
        "tokens": tokens,
        "loss_tokens": sum(label != -100 for e in examples for label in e["labels"]),
        "tokens_per_s": tokens / result["seconds"],
        "cpu_tokens_per_s": tokens / result["cpu_seconds"],
        "peak_rss_mb": peak_rss_bytes() / 1e6,
    }
    print(RESULT + json.dumps(result))


def compare(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians of each contender and the ratios of ours to the peers'."""
    kept = ("seconds", "tokens_per_s", "cpu_tokens_per_s", "peak_rss_mb", "gemm_share")
    return medians_and_ratios(runs, kept, {"speed": "tokens_per_s", "cpu_speed": "cpu_tokens_per_s"})


def plan(arguments: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """The result file, and settings that are no options."""
    further = {"batch": BATCH, "learning_rate": LEARNING_RATE, "length": LENGTH, "peer": "trl 1.16.0"}
    return f"sft_vs_trl_{arguments.shape}.json", further


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="smollm2-135m")
    parser.add_argument("--steps", type=int, default=4, help=f"optimizer steps of {BATCH} conversations")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--micro-batch-tokens", type=int, default=2048)
    race(__file__, parser, CONTENDERS, OPTIONS, child=child, compare=compare, plan=plan, default=DEFAULT)


if __name__ == "__main__":
    main()
