"""Low-rank adapters through peft: attaching them for training, folding them into the base.

Shapes: a linear layer W (out, in); lora_A (r, in), lora_B (out, r).
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import BitsAndBytesConfig, PreTrainedModel

from edgeft.errors import ModelError
from edgeft.sections import Lora
from edgeft.training.models import DTYPES, check_safetensors

PREFIX = "base_model.model."


def attach_lora(model: PreTrainedModel, lora: Lora) -> PeftModel:
    """The model with fresh adapters in float32; everything else is frozen.

    Raises ModelError when `target_modules` names nothing in the model.
    """
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        target_modules=lora.target_modules,
        use_rslora=lora.use_rslora,
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        linear = sorted({n.rsplit(".", 1)[-1] for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)})
        raise ModelError(
            f"train.lora.target_modules: {lora.target_modules} fits nothing in this model; its linear layers are "
            f"called {', '.join(linear)} ({error})"
        ) from error


def nf4_config(dtype: str) -> BitsAndBytesConfig:
    """QLoRA's base: NF4 with double quantization (Dettmers et al. 2023), products in `dtype`."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=DTYPES[dtype],
    )


def save_adapter(model: PeftModel, folder: Path, base: str) -> None:
    """Write the adapter as peft reads it; the same bytes for the same adapter."""
    model.save_pretrained(str(folder), safe_serialization=True)
    (folder / "README.md").unlink(missing_ok=True)  # peft's empty model card
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text("utf-8"))
    config["base_model_name_or_path"] = base  # peft writes where the folder lay on this machine
    config["target_modules"] = sorted(config["target_modules"])
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def merge_adapter(base: Path, adapter: Path, out: Path, dtype: str) -> None:
    """Write the weights of `base` with `adapter` folded in, W + scale · B A, shard by shard.

    scale is lora_alpha / r, or lora_alpha / sqrt(r) with rslora (Kalajdzievski 2023). The sum is formed in
    float32 and cast once. Raises ModelError when a layer of the adapter is not in the base, shapes differ, or
    the adapter is of a kind that cannot be folded this way.
    """
    config = json.loads((adapter / "adapter_config.json").read_text("utf-8"))
    if config.get("use_dora") or config.get("bias", "none") != "none" or config.get("modules_to_save"):
        raise ModelError(f"{adapter}: adapters with DoRA, trained biases or modules_to_save cannot be merged yet")
    scale = config["lora_alpha"] / (math.sqrt(config["r"]) if config.get("use_rslora") else config["r"])
    pairs = dict(_adapter_pairs(adapter / "adapter_model.safetensors"))
    used: set[str] = set()
    for shard in sorted(base.glob("*.safetensors")):
        check_safetensors(shard)
        merged: dict[str, torch.Tensor] = {}
        with safe_open(shard, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a dict
                weight = file.get_tensor(name)
                if name in pairs:
                    a, b = pairs[name]
                    if weight.shape != (b.shape[0], a.shape[1]):
                        raise ModelError(
                            f"{name}: the base has shape {tuple(weight.shape)}, the adapter was trained for "
                            f"({b.shape[0]}, {a.shape[1]}); it belongs to another base"
                        )
                    weight = weight.float() + scale * (b.float() @ a.float())
                    used.add(name)
                merged[name] = weight.to(DTYPES[dtype]).contiguous() if weight.is_floating_point() else weight
        save_file(merged, out / shard.name, metadata={"format": "pt"})
    missing = sorted(set(pairs) - used)
    if missing:
        raise ModelError(f"{base}: has no {missing[0]}, which the adapter changes; it belongs to another base")


def _adapter_pairs(path: Path) -> Iterator[tuple[str, tuple[torch.Tensor, torch.Tensor]]]:
    """(name of the base's weight, (A, B)) for every adapted layer."""
    check_safetensors(path)
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - not a dict
            if name.endswith(".lora_A.weight"):
                module = name.removesuffix(".lora_A.weight")
                yield (
                    module.removeprefix(PREFIX) + ".weight",
                    (file.get_tensor(name), file.get_tensor(module + ".lora_B.weight")),
                )
