"""Gemma3ForCausalLM: norms on the heads, five layers of six sliding, with a rotation of their own. Checked by
comparing logits with transformers."""

from edgeft.export.gguf.architectures._sliding import OLDER_KEYS
from edgeft.export.gguf.architectures.base import Config
from edgeft.export.gguf.architectures.gemma3_text import LOCAL_THETA
from edgeft.export.onnx.architectures._common import SLIDING, rope, sliding, window_of
from edgeft.export.onnx.architectures.base import Decoder, Layer
from edgeft.export.onnx.architectures.gemma2 import gemma_decoder

PERIOD = 6
"""Of every so many layers the last one sees everything."""


def decoder(config: Config) -> Decoder:
    """See `DecoderOf`."""
    every = next((config[key] for key in OLDER_KEYS if key in config), PERIOD)
    slides = sliding(config, [(layer + 1) % every != 0 for layer in range(config["num_hidden_layers"])])
    full, near, window = rope(config), rope(config, SLIDING, LOCAL_THETA), window_of(config)
    return gemma_decoder(config, [Layer(near, window) if flag else Layer(full) for flag in slides])
