"""MistralForCausalLM: Llama with a sliding window in every layer. Checked by comparing logits with transformers."""

from edgeft.export.gguf.architectures.base import Config
from edgeft.export.onnx.architectures._common import rms_decoder, rope, window_of
from edgeft.export.onnx.architectures.base import Decoder, Layer


def decoder(config: Config) -> Decoder:
    """See `DecoderOf`."""
    layer = Layer(rope(config), window_of(config))
    return rms_decoder(config, [layer] * config["num_hidden_layers"])
