"""Sliding windows of the graphs that have them."""

from edgeft.export.gguf.architectures.base import Config, Metadata

OLDER_KEYS = ("sliding_window_pattern", "global_attn_every_n_layers")
"""Where files without `layer_types` say how many layers make a period."""


def sliding_metadata(config: Config, window: int, *, every: int, dense_first: bool = False) -> Metadata:
    """The `window`, in tokens, and which layers have it; nothing where none has.

    In the graph one layer of `every` sees everything: the first of them (`dense_first`) or the last. Which layers
    slide is written only where they are others. config.json has `layer_types`, or in older files the number.
    """
    n_layers = config["num_hidden_layers"]

    def slides(every: int) -> list[bool]:
        return [layer % every != (0 if dense_first else every - 1) for layer in range(n_layers)]

    if config.get("layer_types"):
        sliding = [kind == "sliding_attention" for kind in config["layer_types"]]
    else:
        sliding = slides(next((config[key] for key in OLDER_KEYS if key in config), every))
    if not any(sliding):
        return {}
    metadata: Metadata = {"attention.sliding_window": window}
    if sliding != slides(every):
        metadata["attention.sliding_window_pattern"] = sliding
    return metadata
