"""A look at a GGUF file before llama.cpp gets it.

llama.cpp refuses most broken files cleanly, but some values end the process (a failed GGML_ASSERT), hang it or
make it divide by zero. Those are refused here, each with the key, the byte and what llama.cpp would make of it:
`src/llama-model.cpp` (`load_hparams`), `src/llama-vocab.cpp` (`load`), `src/models/*.cpp`, `ggml/src/ggml-cpu/ops.cpp`.
What stays possible is caught by loading in a child process (`edgeft.runtime.untrusted`).
"""

import math
import re
from array import array
from pathlib import Path
from typing import Any, NoReturn

from edgeft.errors import ModelError
from edgeft.runtime.gguf_format import UINT32, Header, Value, read_header
from edgeft.runtime.header_vocabulary import check_vocabulary

MAX_LAYERS, MAX_EXPERTS = 512, 1024  # LLAMA_MAX_LAYERS, LLAMA_MAX_EXPERTS
ROPE_SCALINGS = ("none", "linear", "yarn", "longrope")
POOLINGS = range(5)
LAYER_ARRAYS = ("attention.head_count", "attention.head_count_kv", "feed_forward_length", "expert_used_count")
LIMITS = {
    "block_count": (1, MAX_LAYERS),
    "context_length": (1, 1 << 31),
    "embedding_length": (1, 1 << 20),
    "feed_forward_length": (0, 1 << 24),
    "attention.head_count": (0, 1 << 16),
    "attention.head_count_kv": (0, 1 << 16),
    "attention.key_length": (1, 1 << 16),
    "attention.value_length": (1, 1 << 16),
    "attention.sliding_window": (0, 1 << 31),
    "rope.dimension_count": (0, 1 << 16),
    "rope.scaling.original_context_length": (1, 1 << 31),
    "vocab_size": (1, 1 << 24),
    "expert_count": (0, MAX_EXPERTS),
    "expert_used_count": (0, MAX_EXPERTS),
    "pooling_type": (min(POOLINGS), max(POOLINGS)),
}
"""Least and largest sane value of the counts `<architecture>.<key>`, which are uint32."""
REQUIRED = ("block_count", "context_length", "embedding_length")

RMS, PLAIN = "attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"
EPSILON_KEYS = {
    **dict.fromkeys(
        ("llama", "mistral3", "qwen2", "qwen3", "qwen3moe", "smollm3", "gemma2", "gemma3", "phi3", "olmo2", "granite"),
        RMS,
    ),
    **dict.fromkeys(("gpt2", "bert", "nomic-bert"), PLAIN),
}
"""The architectures whose attention is checked, each with the norm epsilon llama.cpp requires of it."""
WHOLE_HEADS = ("llama", "mistral3", "qwen2", "qwen3", "qwen3moe", "smollm3", "olmo2", "granite")
"""Those whose graph asserts that the rotary embedding turns whole heads."""
BLOCK = re.compile(r"blk\.(\d+)\.")


def check_gguf(path: Path) -> Header:
    """The header of the model file `path`.

    Raises ModelError when `path` is missing, is no GGUF file, is cut short or inconsistent, or holds values no
    model can have; the message names key or tensor and byte.
    """
    header = read_header(path)
    architecture = header.values.get("general.architecture")
    if architecture is None or not isinstance(architecture.value, str) or not architecture.value:
        raise ModelError(f"{path}: the key 'general.architecture' is missing or no string; this is no model file")
    if header.get("general.type", "model") != "model":
        raise ModelError(f"{path}: this is a GGUF file of type {header.get('general.type')!r}, not a model")
    if header.get("split.count", 1) not in (0, 1):
        raise ModelError(f"{path}: one of {header.get('split.count')} parts; join them (llama-gguf-split --merge)")
    _Model(header).check()
    check_vocabulary(header)
    return header


class _Model:
    """The hyper-parameters of one file, by their name without the architecture's prefix."""

    def __init__(self, header: Header) -> None:
        self.header, self.name = header, header.architecture

    def check(self) -> None:
        for key in REQUIRED:
            if self.entry(key) is None:
                raise ModelError(f"{self.header.path}: the key '{self.name}.{key}' is missing; export it again")
        for key, limits in LIMITS.items():
            self.check_count(key, *limits)
        self.check_floats()
        self.check_experts()
        scaling = self.get("rope.scaling.type", "linear")
        if scaling not in ROPE_SCALINGS:
            self.refuse("rope.scaling.type", f"is none of {', '.join(ROPE_SCALINGS)}")
        if self.name in EPSILON_KEYS:
            self.check_attention()
        self.check_tensors()

    def check_count(self, key: str, low: int, high: int) -> None:
        entry = self.entry(key)
        if entry is None:
            return
        if isinstance(entry.value, array) and key in LAYER_ARRAYS:
            if entry.value.typecode not in "iIb":
                self.refuse(key, "holds no counts")
            if len(entry.value) != self.get("block_count"):
                self.refuse(key, f"has {len(entry.value)} entries for {self.get('block_count')} layers")
            numbers = list(entry.value)
        elif entry.kind != UINT32:
            self.refuse(key, f"is {entry.type_name}, not uint32")
        else:
            numbers = [entry.value]
        if not all(low <= number <= high for number in numbers):
            self.refuse(key, f"is not from {low} to {high}")

    def check_floats(self) -> None:
        """Every float of the architecture: a NaN epsilon hangs llama.cpp, a negative one ends the process."""
        prefix = f"{self.name}."
        for full, entry in self.header.values.items():
            if not full.startswith(prefix) or not isinstance(entry.value, float):
                continue
            key = full.removeprefix(prefix)
            if not math.isfinite(entry.value):
                self.refuse(key, "is not finite")
            if "epsilon" in key and not 0 < entry.value < 1:
                self.refuse(key, "is not between 0 and 1")
            if "freq_base" in key and entry.value <= 0:
                self.refuse(key, "is not positive")
            if key.startswith("rope.scal") and entry.value < 0:
                self.refuse(key, "is negative")

    def check_experts(self) -> None:
        experts, used = self.get("expert_count", 0), max(self.layers("expert_used_count", 0))
        if used > experts or (experts > 0 and used == 0):
            self.refuse("expert_count", f"does not fit {used} experts used for a token")
        groups = self.get("expert_group_count", 0)
        if groups and (groups >= experts or experts % groups):
            self.refuse("expert_group_count", f"does not divide {experts} experts")
        if groups > 1 and not 0 < self.get("expert_group_used_count", 0) < groups:
            self.refuse("expert_group_used_count", f"is not from 1 to {groups - 1}")

    def check_attention(self) -> None:
        """What the graphs of the known architectures assert about heads."""
        epsilon = EPSILON_KEYS[self.name]
        if not isinstance(self.get(epsilon), float):
            self.refuse(epsilon, "must be a float32")
        if self.entry("attention.head_count") is None:
            self.refuse("attention.head_count", "is needed")
        heads = self.layers("attention.head_count", 0)
        kv_heads = self.layers("attention.head_count_kv", 0) if self.entry("attention.head_count_kv") else heads
        for head, kv_head in zip(heads, kv_heads, strict=True):
            if head == 0:
                self.refuse("attention.head_count", "is not positive")
            if kv_head == 0 or head % kv_head:
                self.refuse("attention.head_count_kv", f"does not divide {head} heads")
        width = self.get("embedding_length") // heads[0]
        key, value = self.get("attention.key_length", width), self.get("attention.value_length", width)
        if key == 0 or key != value:
            self.refuse("attention.key_length", f"does not fit values of length {value}")
        rope = self.get("rope.dimension_count", key)
        if rope % 2 or rope > key or (self.name in WHOLE_HEADS and rope != key):
            self.refuse("rope.dimension_count", f"does not fit heads of {key}")
        self.check_projections(heads, kv_heads, key)

    def check_projections(self, heads: list[int], kv_heads: list[int], head_dim: int) -> None:
        width = self.get("embedding_length")
        for layer, (head, kv_head) in enumerate(zip(heads, kv_heads, strict=True)):
            for name, shape in (
                ("attn_norm", (width,)),
                ("attn_q", (head * head_dim, width)),
                ("attn_k", (kv_head * head_dim, width)),
                ("attn_v", (kv_head * head_dim, width)),
                ("attn_output", (width, head * head_dim)),
            ):
                self.check_shape(f"blk.{layer}.{name}.weight", shape)

    def check_tensors(self) -> None:
        rows, width = len(self.header.get("tokenizer.ggml.tokens", ())), self.get("embedding_length")
        if "token_embd.weight" not in self.header.tensors:
            raise ModelError(f"{self.header.path}: the tensor 'token_embd.weight' is missing; export it again")
        self.check_shape("token_embd.weight", (rows, width))
        self.check_shape("output.weight", (rows, width))
        self.check_shape("output_norm.weight", (width,))
        layers = {int(found[1]): name for name in self.header.tensors if (found := BLOCK.match(name))}
        n_layers = self.get("block_count")
        for layer in sorted(layers):
            if layer >= n_layers:
                self.refuse_tensor(layers[layer], f"the file has only {n_layers} layers (block_count)")
        if missing := set(range(n_layers)).difference(layers):
            self.refuse("block_count", f"counts layers without a tensor (layer {min(missing)})")

    def check_shape(self, name: str, shape: tuple[int, ...]) -> None:
        tensor = self.header.tensors.get(name)
        if tensor is not None and tensor.shape != shape:
            self.refuse_tensor(name, f"has the shape {tensor.shape}; the metadata ask for {shape}")

    def layers(self, key: str, default: int) -> list[int]:
        """The count `key` of every layer."""
        value = self.get(key, default)
        return list(value) if isinstance(value, array) else [value] * self.get("block_count")

    def entry(self, key: str) -> Value | None:
        return self.header.values.get(f"{self.name}.{key}")

    def get(self, key: str, default: Any = None) -> Any:
        return self.header.get(f"{self.name}.{key}", default)

    def refuse(self, key: str, why: str) -> NoReturn:
        entry = self.entry(key)
        value, at = ("missing", "") if entry is None else (shown(entry), f" (byte {entry.at})")
        raise ModelError(f"{self.header.path}: {self.name}.{key} = {value}{at}: it {why}; export or copy it again")

    def refuse_tensor(self, name: str, why: str) -> NoReturn:
        at = self.header.tensors[name].at
        raise ModelError(f"{self.header.path}: the tensor {name!r} (byte {at}): {why}; export or copy it again")


def shown(entry: Value) -> str:
    """A value in a message: short."""
    if entry.item_kind is not None:
        return f"{entry.type_name}[{len(entry.value)}]"
    text = repr(entry.value)
    return text if len(text) <= 60 else f"{text[:57]}…"
