"""Weights in few bits: llama.cpp's types, what each tensor's rounding costs, and how to choose among them.

`ggml` is llama.cpp's own quantizer. Nothing here knows the formats files are exported to: what a function must
know of tensors (names, shapes, where they come from) is handed in.
"""
