"""Low-rank adapters through peft: attaching them for training, saving them so that they fit the untouched base.

Shapes: a linear layer W (out, in); lora_A (r, in), lora_B (out, r); its update is scale · B A.
"""

import json
import math
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils.other import ModulesToSaveWrapper
from safetensors.torch import load_file, save_file
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from edgeft.errors import ModelError
from edgeft.sections import Lora
from edgeft.training.models import DTYPES
from edgeft.training.streaming import TensorFile, weight_files

INITIAL = "initial_lora"  # a PiSSA layer's (A, B) before training
ADAPTER = "default"  # peft's name of the only adapter


def attach_lora(model: PreTrainedModel, lora: Lora) -> PeftModel:
    """The model with fresh adapters in float32; everything else is frozen, but `modules_to_save`, in float32 too.

    PiSSA (Meng et al. 2024) takes the adapters' first values out of the base's weights, in place. LoftQ (Li et
    al. 2023, one iteration) sets them to what NF4 lost, read from the folder the model came from. Tied
    embeddings named in `modules_to_save` stay tied.

    Raises ModelError when `target_modules` or `modules_to_save` name nothing in the model, or keys do not go
    together.
    """
    quantized = bool(getattr(model, "is_loaded_in_4bit", False))
    _check_combination(lora, quantized)
    _check_modules(model, lora, quantized)
    config = lora_config(
        lora,
        init_lora_weights="pissa" if lora.init_lora_weights == "pissa" else True,
        modules_to_save=list(lora.modules_to_save) or None,
        ensure_weight_tying=bool(_tied_names(model) & _saved_names(model, lora)),
        task_type="CAUSAL_LM",
    )
    try:
        attached = get_peft_model(model, config)
    except ValueError as error:
        linear = sorted({n.rsplit(".", 1)[-1] for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)})
        raise ModelError(
            f"train.lora.target_modules: {lora.target_modules} fits nothing in this model; its linear layers are "
            f"called {', '.join(linear)} ({error})"
        ) from error
    for module in attached.modules():
        if isinstance(module, ModulesToSaveWrapper):  # peft keeps these in the base's type, too coarse for AdamW
            for parameter in module.modules_to_save.parameters():
                parameter.data = parameter.data.float()
        elif isinstance(module, LoraLayer) and lora.init_lora_weights == "pissa":
            sides: tuple[Any, ...] = (module.lora_A, module.lora_B)
            setattr(module, INITIAL, tuple(side[ADAPTER].weight.detach().cpu().clone() for side in sides))
    if lora.init_lora_weights == "loftq":
        _start_as_quantization_error(attached, Path(str(model.name_or_path)))
    return attached


def lora_config(lora: Lora, **options: Any) -> LoraConfig:
    """peft's config of the recipe's adapter; `options` are what depends on the model and its task."""
    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        target_modules=lora.target_modules,
        use_rslora=lora.use_rslora,
        use_dora=lora.use_dora,
        **options,
    )


def nf4_config(dtype: str) -> BitsAndBytesConfig:
    """QLoRA's base: NF4 with double quantization (Dettmers et al. 2023), products in `dtype`."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=DTYPES[dtype],
    )


def save_adapter(model: PeftModel, folder: Path, base: str) -> None:
    """Write the adapter as peft reads it, for the base as it lies on disk; the same bytes for the same adapter.

    A PiSSA adapter becomes a plain one of rank 2r: W_res + s B A = W + s (B A − B₀ A₀). A LoftQ adapter fits the
    base in NF4 only.
    """
    model.save_pretrained(str(folder), safe_serialization=True)
    (folder / "README.md").unlink(missing_ok=True)  # peft's empty model card
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text("utf-8"))
    config["base_model_name_or_path"] = base  # peft writes where the folder lay on this machine
    for key in ("target_modules", "modules_to_save"):  # peft keeps sets
        if isinstance(config[key], list):
            config[key] = sorted(config[key])
    initial = {n: getattr(m, INITIAL) for n, m in model.named_modules() if isinstance(getattr(m, INITIAL, None), tuple)}
    if initial:
        weights = folder / "adapter_model.safetensors"
        save_file(_without_initial(load_file(weights), initial), weights, metadata={"format": "pt"})
        config["r"] *= 2
        config["lora_alpha"] *= math.sqrt(2) if config["use_rslora"] else 2  # the scale stays
    config["init_lora_weights"] = True  # whoever loads it must not start from the base's components again
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _without_initial(
    tensors: dict[str, torch.Tensor], initial: dict[str, tuple[torch.Tensor, torch.Tensor]]
) -> dict[str, torch.Tensor]:
    """[B | −B₀] and [A | A₀], stacked along the rank (peft's `subtract_mutated_init`, which drops all else)."""
    changed = dict(tensors)
    for name, (a, b) in initial.items():
        key_a, key_b = f"{name}.lora_A.weight", f"{name}.lora_B.weight"
        changed[key_a] = torch.cat([tensors[key_a], a.to(tensors[key_a].dtype)], dim=0)
        changed[key_b] = torch.cat([tensors[key_b], -b.to(tensors[key_b].dtype)], dim=1)
    return changed


@torch.no_grad()
def _start_as_quantization_error(model: PeftModel, folder: Path) -> None:
    """scale · B A = the rank-r part of W − NF4(W), by its singular values.

    peft's own `replace_lora_weights_loftq` needs a GPU and leaves the scale out.
    """
    from bitsandbytes.functional import dequantize_4bit

    files = [TensorFile(path) for path in weight_files(folder)]
    where = {name: file for file in files for name in file.entries}
    base = model.get_base_model()
    for name, module in base.named_modules():
        layer: Any = module.get_base_layer() if isinstance(module, LoraLayer) else None
        if layer is None or not hasattr(layer.weight, "quant_state"):  # what is not quantized loses nothing
            continue
        key = next((n for n in (f"{name}.weight", f"{name.split('.', 1)[-1]}.weight") if n in where), None)
        if key is None:
            raise ModelError(f"train.lora.init_lora_weights: loftq finds no {name}.weight in {folder}; use default")
        held = dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()
        exact = where[key].tensor(key).float().to(held.device)
        exact = exact.T if getattr(layer, "source_cls", None) is Conv1D else exact
        _start_at(module, exact - held)


def _start_at(layer: Any, wanted: torch.Tensor) -> None:
    """scale · B A = the best rank-r approximation of `wanted` (out, in), shared evenly between A and B."""
    u, s, vh = torch.linalg.svd(wanted, full_matrices=False)
    r = layer.r[ADAPTER]
    root = torch.sqrt(s[:r] / layer.scaling[ADAPTER])
    layer.lora_A[ADAPTER].weight.copy_(root[:, None] * vh[:r])
    layer.lora_B[ADAPTER].weight.copy_(u[:, :r] * root)


def _check_combination(lora: Lora, quantized: bool) -> None:
    """Raises ModelError for keys that contradict each other."""
    start = lora.init_lora_weights
    if start == "loftq" and not quantized:
        raise ModelError(
            "train.lora.init_lora_weights: loftq starts from what NF4 loses, and this base is not in NF4; "
            "use train.method: qlora, or init_lora_weights: default"
        )
    if start == "pissa" and quantized:
        raise ModelError(
            "train.lora.init_lora_weights: pissa changes the base's weights, which train.method: qlora holds in 4 "
            "bits; use method: lora, or init_lora_weights: loftq"
        )
    if start == "loftq" and lora.use_dora:
        raise ModelError(
            "train.lora.use_dora: true with init_lora_weights: loftq would start from wrong row lengths; drop one"
        )


def _check_modules(model: PreTrainedModel, lora: Lora, quantized: bool) -> None:
    """Raises ModelError for `modules_to_save` and `target_modules` this model cannot train."""
    modules = dict(model.named_modules())
    tied = _tied_names(model)
    for wanted in lora.modules_to_save:
        found = [name for name in modules if _is_called(name, wanted)]
        if not found:
            known = sorted({name.rsplit(".", 1)[-1] for name in modules if name and not name[-1].isdigit()})
            raise ModelError(
                f"train.lora.modules_to_save: {wanted} is nothing in this model; it has {', '.join(known)}"
            )
        if quantized and any(not p.is_floating_point() for name in found for p in modules[name].parameters()):
            raise ModelError(
                f"train.lora.modules_to_save: {wanted} is held in 4 bits by train.method: qlora and cannot be trained "
                "whole; leave it to target_modules, or use method: lora"
            )
    if isinstance(lora.target_modules, str):
        return
    twice = sorted(set(lora.target_modules) & set(lora.modules_to_save))
    if twice:
        raise ModelError(f"train.lora: {twice[0]} is in target_modules and in modules_to_save; leave it in one")
    for wanted in lora.target_modules:
        if any(_is_called(name, wanted) for name in tied):
            raise ModelError(
                f"train.lora.target_modules: {wanted} shares its weights with {' and '.join(sorted(tied))}, and an "
                "adapter on one would tear them apart; put it in modules_to_save"
            )


def _tied_names(model: PreTrainedModel) -> set[str]:
    """Names of the embedding and of the head where they share their weights."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if embedding is None or head is None or getattr(embedding, "weight", 0) is not getattr(head, "weight", 1):
        return set()
    return {name for name, module in model.named_modules() if module is embedding or module is head}


def _saved_names(model: PreTrainedModel, lora: Lora) -> set[str]:
    return {n for n, _ in model.named_modules() if any(_is_called(n, wanted) for wanted in lora.modules_to_save)}


def _is_called(name: str, wanted: Any) -> bool:
    """As peft matches names: whole, or from a dot on."""
    return name == wanted or name.endswith(f".{wanted}")
