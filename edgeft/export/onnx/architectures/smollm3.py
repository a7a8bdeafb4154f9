"""SmolLM3ForCausalLM: some layers have no positions. Checked by comparing logits with transformers."""

from edgeft.export.gguf.architectures.base import Config
from edgeft.export.onnx.architectures._common import rms_decoder, rope, sliding, window_of
from edgeft.export.onnx.architectures.base import Decoder, Layer


def decoder(config: Config) -> Decoder:
    """See `DecoderOf`."""
    interval, n_layers = config["no_rope_layer_interval"], config["num_hidden_layers"]
    rotated = config["no_rope_layers"] or [(layer + 1) % interval != 0 for layer in range(n_layers)]
    window = window_of(config) if config["use_sliding_window"] else None
    rotation = rope(config)
    slides = sliding(config, [not flag for flag in rotated])
    return rms_decoder(
        config,
        [
            Layer(rotation if rotates else None, window if windowed else None)
            for rotates, windowed in zip(rotated, slides, strict=True)
        ],
    )
