"""Adapters folded into the base, a few rows at a time: W + scale · B A formed in float32 and cast once.

Shapes: W (out, in) as it multiplies; lora_A (r, in), lora_B (out, r); DoRA's magnitude (out,). Conv1D (GPT-2)
keeps W transposed on disk.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft.utils.other import get_pattern_key
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.quantizers import AutoHfQuantizer

from edgeft.errors import ModelError
from edgeft.training.adapters import nf4_config
from edgeft.training.models import DTYPES
from edgeft.training.streaming import Entry, TensorFile, row_blocks, weight_files, write_index, write_tensors

PREFIX = "base_model.model."
OTHER_BASE = "it belongs to another base"
NOT_MERGEABLE = ("trainable_token_indices", "layer_replication", "target_parameters", "alora_invocation_tokens")


def merge_adapter(base: Path, adapter: Path, out: Path, dtype: str, nf4: str | None = None) -> dict[str, Any]:
    """Write the weights of `base` with `adapter` folded in to `out`, and return what changes in config.json.

    scale is lora_alpha / r, or lora_alpha / sqrt(r) with rslora (Kalajdzievski 2023). With DoRA (Liu et al. 2024)
    each row of the sum is brought to the length learned for it. Modules trained whole replace the base's.
    `nf4`: fold into the base as QLoRA holds it, its linear layers through NF4 from this type and back, bit for
    bit; None: into the base as it lies on disk.

    Memory: one block of rows, or one linear layer where a whole one is needed (NF4, Conv1D).
    Raises ModelError when the adapter does not fit the base or is of a kind that cannot be folded.
    """
    shards = {path.name: TensorFile(path) for path in weight_files(base)}
    plan = _Plan(base, shards, _Adapter(adapter), nf4)
    written: dict[str, dict[str, Entry]] = {}
    for shard, file in shards.items():
        names = [*file.entries, *(plan.added if shard == list(shards)[-1] else ())]
        written[shard] = {name: Entry(_cast(plan.dtype(name), dtype), plan.shape(name)) for name in names}
        write_tensors(out / shard, written[shard], partial(plan.pieces, dtype=DTYPES[dtype]))
    if len(written) > 1:
        write_index(out, written)
    return plan.config_changes


def cast_model(source: Path, out: Path, dtype: str) -> None:
    """Write the weights of `source` in `dtype` to `out`, a block of rows at a time."""
    written: dict[str, dict[str, Entry]] = {}
    for path in weight_files(source):
        file = TensorFile(path)
        written[path.name] = {name: Entry(_cast(e.dtype, dtype), e.shape) for name, e in file.entries.items()}
        write_tensors(out / path.name, written[path.name], partial(_cast_pieces, file, dtype=DTYPES[dtype]))
    if len(written) > 1:
        write_index(out, written)


@dataclass(frozen=True)
class _LowRank:
    """An adapted layer: its tensors' names in the adapter's file, and its scale."""

    module: str
    a: str
    b: str
    magnitude: str | None
    scale: float


class _Adapter:
    """An adapter as peft saves it: `low_rank` and `whole` (key in the file) by the name of the base's tensor."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
        if self.config.get("bias", "none") != "none" or self.config.get("lora_bias"):
            raise ModelError(f"{folder}: adapters with trained biases cannot be merged; train with bias: none")
        for key in NOT_MERGEABLE:
            if self.config.get(key):
                raise ModelError(f"{folder}: adapters with {key} cannot be merged")
        self.file = TensorFile(folder / "adapter_model.safetensors")
        self.low_rank: dict[str, _LowRank] = {}
        self.whole: dict[str, str] = {}
        for key in self.file.entries:
            name = key.removeprefix(PREFIX)
            module, _, kind = name.partition(".lora_")
            if ".original_module." in name:  # beside resized embeddings peft keeps what they were
                continue
            if not kind:
                self.whole[name.replace(".modules_to_save.", ".")] = key
            elif kind == "A.weight":
                self.low_rank[f"{module}.weight"] = self._low_rank(module)
            elif kind not in ("B.weight", "magnitude_vector"):
                raise ModelError(f"{folder}: holds {key}, a kind of adapter that cannot be merged")

    def _low_rank(self, module: str) -> _LowRank:
        key, config = f"{PREFIX}{module}.lora_", self.config
        ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
        rank = ranks.get(get_pattern_key(list(ranks), module), config["r"])
        alpha = alphas.get(get_pattern_key(list(alphas), module), config["lora_alpha"])
        held = self.file.entries[key + "A.weight"].shape[0]
        if held != rank:
            raise ModelError(f"{self.folder}: {module} has rank {held}, adapter_config.json says {rank}; copy it again")
        scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
        magnitude = key + "magnitude_vector" if config.get("use_dora") else None
        if key + "B.weight" not in self.file.entries or (magnitude and magnitude not in self.file.entries):
            raise ModelError(f"{self.folder}: incomplete for {module}; train it again")
        return _LowRank(module, key + "A.weight", key + "B.weight", magnitude, scale)


class _Plan:
    """Where each tensor of the merged model comes from; `added`: tensors the base has not, with their source."""

    def __init__(self, base: Path, shards: dict[str, TensorFile], adapter: _Adapter, nf4: str | None):
        self.base, self.adapter = base, adapter
        self.where = {name: file for file in shards.values() for name in file.entries}
        self.skeleton = _skeleton(base, nf4)
        self.conv1d = {
            name
            for module, layer in self.skeleton.named_modules()
            if getattr(layer, "source_cls", type(layer)) is Conv1D
            for name in self._spellings(f"{module}.weight")
        }
        self.nf4 = None if nf4 is None else DTYPES[nf4]
        self.added: dict[str, tuple[TensorFile, str]] = {}
        self.config_changes: dict[str, Any] = {}
        self.low_rank = {self._in_base(name): pair for name, pair in adapter.low_rank.items()}
        for name, pair in self.low_rank.items():
            self._check_fit(name, pair)
        self.whole = self._whole()
        self.quantized = {
            self._in_base(f"{name}.weight"): module
            for name, module in self.skeleton.named_modules()
            if nf4 is not None and type(module).__name__ == "Linear4bit"
        }

    def source(self, name: str) -> tuple[TensorFile, str]:
        """The file and the name there of what `name` is before low-rank updates."""
        if name in self.added:
            return self.added[name]
        if name in self.whole:
            return self.adapter.file, self.whole[name]
        return self.where[name], name

    def shape(self, name: str) -> tuple[int, ...]:
        file, key = self.source(name)
        return file.entries[key].shape

    def dtype(self, name: str) -> torch.dtype:
        file, key = self.source(name)
        return file.entries[key].dtype

    def pieces(self, name: str, *, dtype: torch.dtype) -> Iterator[torch.Tensor]:
        """The merged tensor's rows in order, cast to `dtype` if it is a floating one."""
        file, key = self.source(name)
        pair = self.low_rank.get(name)
        layer = self.quantized.get(name) if name not in self.whole else None
        if pair is None and layer is None:
            yield from _cast_pieces(file, key, dtype=dtype)
            return
        if pair is not None and layer is None and name not in self.conv1d:
            for start, stop in row_blocks(self.shape(name)):
                yield self._fold(file.rows(key, start, stop).float(), pair, start, stop).to(dtype)
            return
        weight = file.tensor(key).T if name in self.conv1d else file.tensor(key)
        weight = weight.float() if layer is None else _through_nf4(weight.to(self.nf4), layer)
        weight = weight if pair is None else self._fold(weight, pair, 0, len(weight))
        yield (weight.T if name in self.conv1d else weight).to(dtype)

    def _fold(self, weight: torch.Tensor, pair: _LowRank, start: int, stop: int) -> torch.Tensor:
        """Rows start … stop − 1 of the merged layer, from those of the base in float32."""
        file = self.adapter.file
        a, b = file.tensor(pair.a).float(), file.rows(pair.b, start, stop).float()
        merged = torch.addmm(weight, b, a, alpha=pair.scale)
        if pair.magnitude is not None:
            length = torch.linalg.norm(merged, dim=1)
            merged *= (file.rows(pair.magnitude, start, stop).float() / length)[:, None]
        return merged

    def _in_base(self, name: str) -> str:
        """The name in the base's files of a tensor of the model; without its prefix if they lack it."""
        found = next((n for n in self._spellings(name) if n in self.where), None)
        if found is None:
            raise ModelError(f"{self.base}: has no {name}, which the adapter changes; {OTHER_BASE}")
        return found

    def _spellings(self, name: str) -> tuple[str, str]:
        return name, name.removeprefix(f"{self.skeleton.base_model_prefix}.")

    def _check_fit(self, name: str, pair: _LowRank) -> None:
        entries, shape = self.adapter.file.entries, self.where[name].entries[name].shape
        adapted = (entries[pair.b].shape[0], entries[pair.a].shape[1])
        if (shape[::-1] if name in self.conv1d else shape) != adapted:
            raise ModelError(f"{name}: the base has shape {shape}, the adapter was trained for {adapted}; {OTHER_BASE}")

    def _whole(self) -> dict[str, str]:
        """Key in the adapter's file of each tensor that replaces one of the base; settles tied heads."""
        whole = dict(self.adapter.whole)
        embedding, head = (_weight_name(self.skeleton, m) for m in ("get_input_embeddings", "get_output_embeddings"))
        if self.skeleton.config.tie_word_embeddings and {embedding, head} & whole.keys():
            self._settle_head(whole, embedding, head)
        file = self.adapter.file
        for name, key in whole.items():
            found = self._in_base(name)
            ours, theirs = self.where[found].entries[found].shape, file.entries[key].shape
            if ours == theirs:
                continue
            if name not in (embedding, head) or ours[1:] != theirs[1:]:
                raise ModelError(f"{name}: the base has shape {ours}, the adapter holds it in {theirs}; {OTHER_BASE}")
            self.config_changes["vocab_size"] = theirs[0]
        rows = {file.entries[whole[n]].shape[0] if n in whole else self._rows(n) for n in (embedding, head)} - {0}
        if len(rows) > 1:
            raise ModelError(
                f"{self.adapter.folder}: embedding and head have different numbers of tokens ({sorted(rows)}); after "
                "adding tokens, train both: modules_to_save: [embed_tokens, lm_head]"
            )
        return {self._in_base(name): key for name, key in whole.items()}

    def _rows(self, name: str) -> int:
        """Rows of a tensor of the merged model that the adapter does not hold; 0 if it is not there."""
        if name in self.added:
            return self.shape(name)[0]
        return self.where[name].entries[name].shape[0] if name in self.where else 0

    def _settle_head(self, whole: dict[str, str], embedding: str, head: str) -> None:
        """A head that was trained apart from the embedding it shared becomes a tensor of its own."""
        file, config = self.adapter.file, self.adapter.config
        if embedding in whole and head in whole:
            together = _equal(file, whole[embedding], whole[head])
        else:
            together = embedding in whole and bool(config.get("ensure_weight_tying"))
        if together:
            if head not in self.where:
                whole.pop(head, None)
            return
        self.config_changes["tie_word_embeddings"] = False
        if head not in self.where:
            key = whole.pop(head, None)
            shared = self._in_base(embedding)
            self.added[head] = (file, key) if key is not None else (self.where[shared], shared)


def _skeleton(base: Path, nf4: str | None) -> PreTrainedModel:
    """The base's modules without weights; with `nf4`, those QLoRA quantizes are bitsandbytes' Linear4bit."""
    try:
        config = AutoConfig.from_pretrained(base, local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{base}: transformers does not know this model: {error}") from error
    if nf4 is not None:
        AutoHfQuantizer.from_config(nf4_config(nf4)).preprocess_model(model=model, device_map=None)
    return model


def _through_nf4(weight: torch.Tensor, layer: torch.nn.Module) -> torch.Tensor:
    """`weight` (out, in) as the quantized layer gives it back, in float32; on the GPU if there is one, as training."""
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Params4bit

    device = "cuda" if torch.cuda.is_available() else "cpu"
    held: Any = Params4bit(weight.contiguous(), requires_grad=False, **layer.weight.__dict__)
    held = held.to(device)
    return dequantize_4bit(held.data, held.quant_state).float().cpu()


def _cast_pieces(file: TensorFile, key: str, *, dtype: torch.dtype) -> Iterator[torch.Tensor]:
    for start, stop in row_blocks(file.entries[key].shape):
        block = file.rows(key, start, stop) if file.entries[key].shape else file.tensor(key)
        yield block.to(dtype) if block.is_floating_point() else block


def _cast(dtype: torch.dtype, wanted: str) -> torch.dtype:
    return DTYPES[wanted] if dtype.is_floating_point else dtype


def _weight_name(model: PreTrainedModel, getter: str) -> str:
    """Name of the weight of the model's embedding or head; empty if it has none."""
    wanted = getattr(model, getter)()
    return next((f"{name}.weight" for name, module in model.named_modules() if module is wanted), "")


def _equal(file: TensorFile, one: str, other: str) -> bool:
    """Whether two tensors of a file hold the same."""
    if file.entries[one].shape != file.entries[other].shape:
        return False
    return all(
        torch.equal(file.rows(one, start, stop), file.rows(other, start, stop))
        for start, stop in row_blocks(file.entries[one].shape)
    )
