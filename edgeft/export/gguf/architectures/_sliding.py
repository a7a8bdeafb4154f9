"""Sliding windows of the graphs that have them."""

from edgeft.export.gguf.architectures.base import Config, Metadata


def sliding_metadata(config: Config, *, pattern: int, window: str = "sliding_window") -> Metadata:
    """The window, in tokens, and which layers have it.

    `pattern` is the graph's own: every `pattern`-th layer sees everything. The layers are written only where
    they are others; `window` is the key of config.json that has the tokens.
    """
    slides = sliding_layers(config, pattern)
    if not any(slides):
        return {}
    metadata: Metadata = {"attention.sliding_window": config[window]}
    if slides != [(layer + 1) % pattern != 0 for layer in range(len(slides))]:
        metadata["attention.sliding_window_pattern"] = slides
    return metadata


def sliding_layers(config: Config, pattern: int) -> list[bool]:
    """Whether each layer has the window; without `layer_types`, by `sliding_window_pattern` or `pattern`."""
    if config.get("layer_types"):
        return [kind == "sliding_attention" for kind in config["layer_types"]]
    period = config.get("sliding_window_pattern") or config.get("_sliding_window_pattern") or pattern
    return [(layer + 1) % period != 0 for layer in range(config["num_hidden_layers"])]
