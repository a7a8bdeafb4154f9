"""The recipe's section `export`: GGUF files and ONNX folders."""

from typing import Literal, Self

from pydantic import Field, model_validator

from edgeft.sections.base import Section

Ftype = Literal[
    "F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0", "Q4_K_M", "Q4_K_S", "Q4_1",
    "Q4_0", "IQ4_NL", "IQ4_XS", "Q3_K_L", "Q3_K_M", "Q3_K_S", "IQ3_M", "IQ3_S", "IQ3_XS", "IQ3_XXS", "Q2_K",
    "Q2_K_S", "IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S", "TQ2_0", "TQ1_0",
]  # fmt: skip


class Gguf(Section):
    """One GGUF file."""

    ftype: Ftype | Literal["auto"]
    """llama.cpp's name of the quantization; `auto`: the mix of types with the least divergence at the bytes of
    Q4_K_M, `target_bytes` or `max_kl`."""
    imatrix: bool = False
    """Weigh rounding errors by the squared activations of the training examples and general text."""
    rounding: Literal["nearest", "feedback"] = "nearest"
    """How weights get onto the grid: as llama.cpp rounds them, or so that later columns make up for the errors of
    earlier ones (GPTQ); `auto` always does the latter."""
    target_bytes: int | None = Field(None, ge=1)
    """Largest size of the tensors in bytes, for `auto`."""
    max_kl: float | None = Field(None, gt=0.0)
    """Largest mean KL divergence in nats a token on calibration tokens, for `auto`."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.ftype != "auto" and (self.target_bytes is not None or self.max_kl is not None):
            raise ValueError(f"target_bytes and max_kl plan the mix of ftype auto; {self.ftype} is what it is")
        if self.target_bytes is not None and self.max_kl is not None:
            raise ValueError("target_bytes or max_kl, not both: one is bounded, the other results")
        return self


def _default_gguf() -> list[Gguf]:
    return [Gguf(ftype="F16"), Gguf(ftype="Q8_0"), Gguf(ftype="Q4_K_M")]


class Onnx(Section):
    """One ONNX folder of a language model."""

    dtype: Literal["int4", "int8", "fp16", "fp32", "auto"]
    """Of the matrices; `auto`: the mix of grids with the least divergence at the bytes of int4 in blocks of 32, or
    `target_bytes`."""
    block_size: Literal[16, 32, 64, 128, 256] = 32
    """Weights that share a scale, of int4 and int8; onnxruntime's name."""
    symmetric: bool = True
    """No zero points, of int4 and int8; onnxruntime calls it is_symmetric."""
    method: Literal["rtn", "k_quant", "hqq", "gptq", "feedback"] = "k_quant"
    """How weights get onto the grid: to the nearest, by search or half-quadratic; or with later columns making up for
    errors of earlier ones, each calibration token counted alike (gptq) or by how much it matters (feedback, which
    `auto` always takes)."""
    accuracy_level: Literal[0, 1, 2, 3, 4] = 4
    """MatMulNBits' own: 4 multiplies in int8, 1 in float32, 0 leaves it to onnxruntime."""
    head_dtype: Literal["int4", "int8", "fp16", "fp32"] | None = None
    """Of embedding and head; null: `dtype`."""
    activations: Literal["float32", "float16"] = "float32"
    """What int4 and int8 graphs compute in; float16 is for graphics cards."""
    layout: Literal["plain", "genai", "transformers.js"] = "genai"
    """Whose files stand beside the graph: optimum's, onnxruntime-genai's as well, or transformers.js'."""
    min_ort: str | None = Field(None, pattern=r"^\d+\.\d+$")
    """The oldest onnxruntime that must run it, such as 1.22; null: the oldest that can."""
    target_bytes: int | None = Field(None, ge=1)
    """Largest size of the packed matrices in bytes, for `auto`."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.target_bytes is not None and self.dtype != "auto":
            raise ValueError(f"target_bytes plans the mix of dtype auto; {self.dtype} is what it is")
        return self

    @property
    def name(self) -> str:
        """Of the folder, such as `int4-32`, `int4-128-asymmetric-gptq`, `fp16` or `mix`."""
        if self.dtype == "auto":
            return "mix"
        if self.dtype in ("fp16", "fp32"):
            return self.dtype
        words = [self.dtype, str(self.block_size), *(["asymmetric"] if not self.symmetric else [])]
        words += [self.method] if self.method != "k_quant" else []
        words += ["fp16"] if self.activations == "float16" else []
        return "-".join([*words, *([f"head-{self.head_dtype}"] if self.head_dtype else [])])


class Encoder(Section):
    """One ONNX folder of a classifier."""

    dtype: Literal["fp32", "fp16", "int8", "int8_static"]
    """`int8` rounds the inputs of a product to the range they have in the batch; `int8_static` to one found on
    training texts, so that a text's label does not depend on its neighbours; fp16 is for graphics cards."""
    calibrate_method: Literal["minmax", "percentile", "entropy"] = "minmax"
    """How the ranges of `int8_static` are found; the names are those of onnxruntime's CalibrationMethod."""
    layout: Literal["plain", "transformers.js"] = "plain"
    """Where the graph lies: `model.onnx`, or transformers.js' `onnx/model_quantized.onnx`."""
    reduce_range: bool = True
    """Of int8 and int8_static: weights that every processor adds up exactly, which onnxruntime's key of this name
    reaches with 7 bits and edgeft with all but a few in 8; false: 8 bits throughout, in a folder `int8-vnni` for
    processors with VNNI (and ARM's) alone."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.reduce_range and not self.dtype.startswith("int8"):
            raise ValueError(f"reduce_range is about int8 weights; {self.dtype} has none")
        return self

    @property
    def name(self) -> str:
        """Of the folder: `fp32`, `int8`, `int8-vnni`."""
        return self.dtype if self.reduce_range else f"{self.dtype}-vnni"


def _default_encoder() -> list[Encoder]:
    return [Encoder(dtype="fp32"), Encoder(dtype="int8")]


class Export(Section):
    """The files to make."""

    gguf: list[Gguf] = Field(default_factory=_default_gguf, min_length=1)
    """GGUF files for llama.cpp, in the order they are made."""
    onnx: list[Onnx] = []
    """ONNX folders for onnxruntime, made after the GGUF files."""
    encoder: list[Encoder] = Field(default_factory=_default_encoder, min_length=1)
    """What is made in place of GGUF files where `train.objective` is classification: ONNX folders, the last of which
    ships."""
    ship: str | None = None
    """The file that is benchmarked and judged: an ftype of `gguf` or the folder of an entry of `onnx` (`int4-32`,
    `int4-128-asymmetric`, `fp16`, `mix`); null: the last of `gguf`."""
    calibration_tokens: int = Field(16384, ge=512)
    """Tokens of training examples and general text that `imatrix`, `auto`, `feedback` and `gptq` measure."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        ftypes = [entry.ftype for entry in self.gguf]
        if len(set(ftypes)) < len(ftypes):
            raise ValueError("gguf lists an ftype twice")
        encoders = [entry.name for entry in self.encoder]
        if len(set(encoders)) < len(encoders):
            raise ValueError("encoder lists a folder twice")
        folders = [entry.name for entry in self.onnx]
        if len(set(folders)) < len(folders):
            raise ValueError("onnx lists a folder twice")
        if self.ship is not None and self.ship not in ftypes + folders:
            listed = f"the files of gguf ({', '.join(ftypes)})" + (
                f" and onnx ({', '.join(folders)})" if folders else ""
            )
            raise ValueError(f"ship: {self.ship} is not among {listed}")
        return self

    @property
    def shipped(self) -> str:
        """The name of what ships: an ftype, or the folder of an ONNX model."""
        return self.ship or self.gguf[-1].ftype
