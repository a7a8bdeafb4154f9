"""DPO with LoRA, edgeft against TRL's DPOTrainer: seconds, peak memory, and whether the losses are the same.

    pip install --no-deps --target PEER trl==1.16.0 accelerate==1.15.0 datasets==5.2.0 pandas==3.1.1 \\
        dill==0.4.1 multiprocess==0.70.19 xxhash==4.1.0 tzdata==2026.6 python-dateutil==2.9.0.post0 six==1.17.0
    python benchmarks/dpo_vs_trl.py --peer-path PEER

(With `--no-deps`, because the peers' own pins would replace the project's; any further package that an import
names goes into PEER the same way.)

A model of SmolLM2-135M's shape with random weights, r = 16 on all linear layers; the same adapters to start
from, the same pairs in the same batches, the same learning rate. Lengths are log-normal: prompts with a median
of 160 tokens (sigma 0.6, 32 to 512), answers of 64 (sigma 0.6, 8 to 256). Each run is a process of its own, and
the contenders take turns. Seconds are of the training with its reference log-probabilities, without imports
and making the model. Tokens per second count those of prompt, chosen and rejected, each once, for everyone.

Contenders:
  trl          DPOTrainer as it comes: bfloat16 autocast, gradient checkpointing, reference in every step
  trl-fp32     the same in float32: its losses are the yardstick for those of edgeft
  trl-best     bfloat16 weights, no checkpointing
  trl-fp32-best  float32, no checkpointing: its best where bfloat16 products are slow
  edgeft       float32
  edgeft-bf16  bfloat16 weights, float32 adapters
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
OPTIONS = ("shape", "steps", "batch", "threads", "micro_batch_tokens")
CONTENDERS = ("trl", "trl-fp32", "trl-best", "trl-fp32-best", "edgeft", "edgeft-bf16")
LENGTHS = {"prompt": (160, 0.6, 32, 512), "answer": (64, 0.6, 8, 256)}
BETA, LEARNING_RATE, SEED = 0.1, 1e-4, 7


def make_pairs(n: int, vocabulary: int) -> list[dict[str, list[int]]]:
    """Random ids with the lengths of `LENGTHS`; the same for everyone."""
    import numpy as np

    rng = np.random.default_rng(SEED)

    def ids(kind: str) -> list[int]:
        median, sigma, low, high = LENGTHS[kind]
        length = int(np.clip(rng.lognormal(np.log(median), sigma), low, high))
        return rng.integers(3, vocabulary, length).tolist()

    return [{"prompt_ids": ids("prompt"), "chosen_ids": ids("answer"), "rejected_ids": ids("answer")} for _ in range(n)]


def make_model(shape: str, dtype: str) -> Any:
    """The shape with random weights, the same for a seed."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(SEED)
    config = LlamaConfig(
        **SHAPES[shape], max_position_embeddings=2048, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2,
        pad_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config).to(getattr(torch, dtype))


def set_adapters(model: Any) -> None:
    """The same A and B for everyone. B is not zero, so that the first loss already says something: the reference
    is the model without adapters."""
    import torch

    generator = torch.Generator().manual_seed(SEED)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            scale = parameter.shape[1] ** -0.5 if "lora_A" in name else 0.01
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * scale)


def run_edgeft(arguments: argparse.Namespace, pairs: list[dict[str, list[int]]], out: Path) -> dict[str, Any]:
    """One training as `edgeft train` does it."""
    import numpy as np
    import torch

    from edgeft.console import silent_log
    from edgeft.data.preferences import EncodedPair
    from edgeft.sections import Lora
    from edgeft.training.adapters import attach_lora
    from edgeft.training.fused_lora import fuse_lora
    from edgeft.training.keeping import SaveRule
    from edgeft.training.loop import LoopConfig, train_loop
    from edgeft.training.memory import keep_freed_memory
    from edgeft.training.pair_attention import use_pair_attention
    from edgeft.training.pairs import PairSet
    from edgeft.training.preference import dpo_loss_sum, reference_log_probs

    keep_freed_memory()
    half = arguments.run == "edgeft-bf16"
    autocast = torch.bfloat16 if half else None
    model = make_model(arguments.shape, "bfloat16" if half else "float32")
    use_pair_attention(model)
    tuned = attach_lora(model, Lora())
    fuse_lora(tuned)
    tokens = PairSet.build(
        EncodedPair(
            p["prompt_ids"], p["chosen_ids"], p["rejected_ids"],
            [True] * len(p["chosen_ids"]), [True] * len(p["rejected_ids"]),
        )
        for p in pairs
    )  # fmt: skip
    trained = [p for p in tuned.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.0)
    config = LoopConfig(
        learning_rate=LEARNING_RATE, lr_scheduler_type="constant", warmup_steps=0, max_grad_norm=1.0,
        micro_batch_tokens=arguments.micro_batch_tokens, save=SaveRule(None), autocast=autocast,
    )  # fmt: skip
    plan = [np.arange(at, at + arguments.batch) for at in range(0, len(pairs), arguments.batch)]
    began = time.perf_counter()
    reference = reference_log_probs(
        tuned, tokens, out / "checkpoint", micro_batch_tokens=arguments.micro_batch_tokens, autocast=autocast
    )
    reference_seconds = time.perf_counter() - began
    set_adapters(tuned)
    train_loop(
        tuned, optimizer, tokens.with_reference(reference), plan, dpo_loss_sum(BETA), config, out=out, log=silent_log()
    )
    seconds = time.perf_counter() - began
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return {"seconds": seconds, "reference_seconds": reference_seconds, "losses": [row["loss"] for row in rows]}


def run_trl(arguments: argparse.Namespace, pairs: list[dict[str, list[int]]], out: Path) -> dict[str, Any]:
    """One training by TRL; it is handed the ids, so that no one's tokenizer is measured."""
    from datasets import Dataset
    from peft import LoraConfig
    from torch.utils.data import SequentialSampler
    from trl import DPOConfig, DPOTrainer

    sys.path.insert(0, str(HERE.parent))
    from tests.tiny import tiny_tokenizer

    losses: list[float] = []

    class Trainer(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

        def _get_train_sampler(self, dataset: Any = None) -> Any:
            return SequentialSampler(dataset if dataset is not None else self.train_dataset)

        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().compute_loss(*args, **kwargs)
            losses.append((loss[0] if isinstance(loss, tuple) else loss).item())
            return loss

    options: dict[str, dict[str, Any]] = {
        "trl": {},
        "trl-fp32": {"bf16": False},
        "trl-best": {"gradient_checkpointing": False},
        "trl-fp32-best": {"bf16": False, "gradient_checkpointing": False},
    }
    model = make_model(arguments.shape, "bfloat16" if arguments.run == "trl-best" else "float32")
    config = DPOConfig(
        output_dir=str(out), per_device_train_batch_size=arguments.batch, num_train_epochs=1, beta=BETA,
        learning_rate=LEARNING_RATE, lr_scheduler_type="constant", save_strategy="no", report_to=[],
        disable_tqdm=True, use_cpu=True, max_length=None, dataloader_pin_memory=False, **options[arguments.run],
    )  # fmt: skip
    trainer = Trainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_list([{"prompt": "", "chosen": "", "rejected": ""} | p for p in pairs]),
        processing_class=tiny_tokenizer(),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    set_adapters(trainer.model)
    began = time.perf_counter()
    trainer.train()
    return {"seconds": time.perf_counter() - began, "losses": losses}


def child(arguments: argparse.Namespace) -> None:
    import torch

    from edgeft.machine.process import peak_rss_bytes

    torch.set_num_threads(arguments.threads)
    pairs = make_pairs(arguments.steps * arguments.batch, SHAPES[arguments.shape]["vocab_size"])
    run = run_trl if arguments.run.startswith("trl") else run_edgeft
    with tempfile.TemporaryDirectory() as folder:
        result = run(arguments, pairs, Path(folder))
    tokens = sum(len(ids) for pair in pairs for ids in pair.values())
    result |= {"tokens_per_s": tokens / result["seconds"], "peak_rss_mb": peak_rss_bytes() / 1e6}
    print(RESULT + json.dumps(result))


def compare(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians, ratios, and the largest relative difference of the losses in float32."""
    result = medians_and_ratios(runs, ("seconds", "tokens_per_s", "peak_rss_mb"), {"speed": "tokens_per_s"})
    by_name = by_contender(runs)
    if "edgeft" in by_name and "trl-fp32" in by_name:
        ours, theirs = by_name["edgeft"][0]["losses"], by_name["trl-fp32"][0]["losses"]
        result["loss_difference"] = max(abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True))
    return result


def plan(arguments: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """The result file, and settings that are no options."""
    further = {"beta": BETA, "learning_rate": LEARNING_RATE, "lengths": LENGTHS, "peer": "trl 1.16.0"}
    return "dpo_vs_trl.json" if arguments.shape != "tiny" else "dpo_tiny.json", further


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="smollm2-135m")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--batch", type=int, default=4, help="pairs in one optimizer step")
    parser.add_argument("--repeats", dest="rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--micro-batch-tokens", type=int, default=4096)
    race(__file__, parser, CONTENDERS, OPTIONS, child=child, compare=compare, plan=plan)


if __name__ == "__main__":
    main()
