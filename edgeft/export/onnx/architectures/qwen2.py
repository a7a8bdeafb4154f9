"""Qwen2ForCausalLM (Qwen 2 and 2.5): the upper layers may have a sliding window. Checked by comparing logits."""

from edgeft.export.gguf.architectures.base import Config
from edgeft.export.onnx.architectures._common import rms_decoder, rope, sliding, window_of
from edgeft.export.onnx.architectures.base import Decoder, Layer


def decoder(config: Config) -> Decoder:
    """See `DecoderOf`."""
    window = window_of(config) if config["use_sliding_window"] else None
    slides = sliding(config, [layer >= config["max_window_layers"] for layer in range(config["num_hidden_layers"])])
    rotation = rope(config)
    return rms_decoder(config, [Layer(rotation, window if flag else None) for flag in slides])
