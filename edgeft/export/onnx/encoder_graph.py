"""What the graphs of all encoders are made of: embeddings, norms, products, attention.

Operators are those that onnxruntime runs fastest on a processor: a bias goes into the operator behind its product,
a residual into the norm behind it, and attention is one operator.

Shapes: B texts, S tokens of the longest, D width, H heads.
"""

from collections.abc import Callable

import numpy as np
from onnx import TensorProto

from edgeft.errors import ModelError
from edgeft.export.folder import Checkpoint
from edgeft.export.gguf.architectures.base import Config
from edgeft.export.onnx.encoder_products import Float, Product, Products, float_array
from edgeft.export.onnx.graph import Graph

IDS, MASK, TYPES = "input_ids", "attention_mask", "token_type_ids"
BATCH, SEQUENCE = "batch_size", "sequence_length"
FAR = -10000.0
"""Added to the score of what is out of sight, as MultiHeadAttention does for padding."""

Observer = Callable[[str, str, np.ndarray], None]
"""(name of a product, name of its input in the graph, its weights (K, N))."""


class EncoderGraph:
    """The graph of one encoder, the weights it is made from, and which of them are used up."""

    def __init__(
        self, checkpoint: Checkpoint, config: Config, products: Products, *, observer: Observer | None = None
    ) -> None:
        """`checkpoint` has the names of the model without its head's prefix; `observer` hears of every product."""
        self.graph = Graph("model.onnx.data")
        self.checkpoint, self.config, self.products = checkpoint, config, products
        self.used: set[str] = set()
        self._observer = observer
        self._made: dict[str, str] = {}
        self.ids = self.graph.input(IDS, TensorProto.INT64, [BATCH, SEQUENCE])
        self.mask = self.graph.input(MASK, TensorProto.INT64, [BATCH, SEQUENCE])
        self.key_mask = self.graph.node("Cast", [self.mask], "mask", to=TensorProto.INT32)

    @property
    def float_type(self) -> int:
        """The ONNX type of what flows between operators."""
        return self.products.elem_type

    def has(self, name: str) -> bool:
        """Whether the checkpoint has a tensor `name`."""
        return name in self.checkpoint.tensors

    def tensor(self, name: str, *shape: int) -> np.ndarray:
        """The weights `name` in float32. Raises ModelError when they are missing, of another shape or not finite."""
        stored = self.checkpoint.tensors.get(name)
        if stored is None:
            raise ModelError(f"{self.checkpoint.path}: the tensor {name} is missing from the weights")
        if stored.shape != shape:
            raise ModelError(f"{stored.file}: {name} has shape {stored.shape}; config.json says {shape}")
        self.used.add(name)
        values = stored.read().astype(np.float32)
        if not np.isfinite(values).all():
            raise ModelError(f"{name} holds values that are not finite; the weights are damaged, train them again")
        return values

    def floats(self, name: str, values: np.ndarray) -> str:
        """A constant in the graph's float type."""
        return self.graph.constant(name, float_array(values, self.float_type, name))

    def whole(self, name: str, values: int | list[int]) -> str:
        """A constant int64, a scalar or a list."""
        return self.graph.constant(name, np.asarray(values, np.int64))

    def embed(self, ids: str, name: str, rows: int, *, rounded: bool = True) -> str:
        """Rows of the table `name`.weight by `ids`, (…, D); not `rounded`: in float, as tables of few rows are."""
        table = self.tensor(f"{name}.weight", rows, self.config["hidden_size"])
        products = self.products if rounded else Float(self.float_type)
        return products.look_up(self.graph, f"{name}.weight", ids, table)

    def first_places(self) -> str:
        """0 … S - 1, (1, S) int64."""
        return self._once(
            "places", lambda name: self.graph.node("Unsqueeze", [self.positions(), self.whole("axis_0", [0])], name)
        )

    def length(self) -> str:
        """S, as a list of one number."""
        return self._once("length", lambda name: self.graph.node("Shape", [self.ids], name, start=1, end=2))

    def multiply(self, x: str, name: str, modules: list[str], shape: tuple[int, int]) -> Product:
        """`x` times the transposed weights of `modules`, side by side, each of `shape` (outputs, inputs)."""
        weight = np.concatenate([self.tensor(f"{module}.weight", *shape) for module in modules])
        bias = None
        if self.has(f"{modules[0]}.bias"):
            bias = np.concatenate([self.tensor(f"{module}.bias", shape[0]) for module in modules])
        weight = np.ascontiguousarray(weight.T)
        if self._observer:
            self._observer(name, x, weight)
        return self.products.multiply(self.graph, name, x, weight, bias)

    def linear(self, x: str, module: str, shape: tuple[int, int]) -> Product:
        """`multiply` with one module, under its name."""
        return self.multiply(x, module, [module], shape)

    def float_linear(self, x: str, module: str, shape: tuple[int, int]) -> Product:
        """`linear`, in float whatever the other products are."""
        weight = self.tensor(f"{module}.weight", *shape)
        bias = self.tensor(f"{module}.bias", shape[0]) if self.has(f"{module}.bias") else None
        return Float(self.float_type).multiply(self.graph, module, x, np.ascontiguousarray(weight.T), bias)

    def added(self, product: Product, name: str) -> str:
        """The product with its bias."""
        return self.graph.node("Add", [product.value, product.bias], f"{name}.add") if product.bias else product.value

    def norm(self, x: str, module: str, epsilon: float) -> str:
        """Layer norm."""
        return self.graph.node("LayerNormalization", [x, *self._norm(module)], module, axis=-1, epsilon=epsilon)

    def skip_norm(self, product: Product, residual: str, module: str, epsilon: float) -> tuple[str, str]:
        """Layer norm of product + bias + residual, and that sum itself."""
        weight, *bias = self._norm(module)
        outputs = [f"{module}.output", "", "", f"{module}.sum"]
        self.graph.node(
            "SkipLayerNormalization",
            [product.value, residual, weight, *(bias or [""]), product.bias],
            module,
            outputs=outputs,
            epsilon=epsilon,
        )
        return outputs[0], outputs[3]

    def activate(self, product: Product, kind: str, name: str) -> str:
        """The activation that config.json calls `kind`, of the product with its bias."""
        if kind == "gelu" and product.bias:
            return self.graph.node("BiasGelu", [product.value, product.bias], name)
        if kind in ("gelu_new", "gelu_pytorch_tanh") and product.bias:
            return self.graph.node("FastGelu", [product.value, product.bias], name)
        x = self.added(product, name)
        if kind in GELU:
            return self.graph.node("Gelu", [x], name, approximate=GELU[kind])
        if kind == "silu":
            return self.graph.node("Mul", [x, self.graph.node("Sigmoid", [x], f"{name}.sigmoid")], name)
        if kind in ("relu", "tanh"):
            return self.graph.node(kind.capitalize(), [x], name)
        raise ModelError(
            f"config.json: the activation {kind!r} cannot be exported to ONNX; known: {', '.join(ACTIVATIONS)}"
        )

    def split(self, x: str, n: int, name: str) -> list[str]:
        """`x` cut along its last axis into `n` equal parts."""
        outputs = [f"{name}.part_{part}" for part in range(n)]
        self.graph.node("Split", [x], f"{name}.split", outputs=outputs, axis=-1, num_outputs=n)
        return outputs

    def attend(self, parts: list[str], bias: str, name: str, *, score_bias: str = "") -> str:
        """Attention (B, S, D) of queries, keys and values (B, S, D each), to which `bias` (3 D,) is still to be
        added; padding is out of sight. `score_bias` (1, 1, S, S) is added to the scores."""
        inputs = [*parts, bias, self.key_mask, score_bias]
        return self.graph.node(
            "MultiHeadAttention", inputs, name, num_heads=self.config["num_attention_heads"], mask_filter_value=FAR
        )

    def rotate(self, x: str, tables: tuple[str, str], name: str) -> str:
        """Rotary positions on queries or keys (B, S, D), by the (S, D / H / 2) cosines and sines in `tables`."""
        heads = self.config["num_attention_heads"]
        return self.graph.node(
            "RotaryEmbedding", [x, self.whole("first", [0]), *tables], f"{name}.rotated", num_heads=heads
        )

    def positions(self) -> str:
        """0 … S - 1, (S,) int64."""

        def count(name: str) -> str:
            n = self.graph.node("Squeeze", [self.length()], "length.scalar")
            return self.graph.node("Range", [self.whole("zero", 0), n, self.whole("one", 1)], name)

        return self._once("positions", count)

    def rotations(self, name: str, frequencies: np.ndarray, amplitude: float) -> tuple[str, str]:
        """Cosines and sines (S, pairs) of position times frequency, times `amplitude`."""
        positions = self.graph.node("Cast", [self.positions()], f"{name}.positions", to=TensorProto.FLOAT)
        column = self.graph.node("Unsqueeze", [positions, self.whole("axis_1", [1])], f"{name}.column")
        angles = self.graph.node(
            "Mul", [column, self.graph.constant(f"{name}.frequencies", frequencies[None])], f"{name}.angles"
        )
        cosines, sines = (self._table(angles, op, name, amplitude) for op in ("Cos", "Sin"))
        return cosines, sines

    def _table(self, angles: str, op: str, name: str, amplitude: float) -> str:
        table = self.graph.node(op, [angles], f"{name}.{op.lower()}")
        if amplitude != 1.0:
            factor = self.graph.constant(f"{name}.amplitude", np.array(amplitude, np.float32))
            table = self.graph.node("Mul", [table, factor], f"{name}.{op.lower()}.scaled")
        if self.float_type == TensorProto.FLOAT:
            return table
        return self.graph.node("Cast", [table], f"{name}.{op.lower()}.cast", to=self.float_type)

    def _norm(self, module: str) -> list[str]:
        width = self.config["hidden_size"]
        parts = [part for part in ("weight", "bias") if part == "weight" or self.has(f"{module}.{part}")]
        return [self.floats(f"{module}.{part}", self.tensor(f"{module}.{part}", width)) for part in parts]

    def _once(self, name: str, make: Callable[[str], str]) -> str:
        if name not in self._made:
            self._made[name] = make(name)
        return self._made[name]


GELU = {"gelu": "none", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh"}
ACTIVATIONS = (*GELU, "silu", "relu", "tanh")
