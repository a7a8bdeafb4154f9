"""The values a weight may take in each format, exactly as the runtime will read them.

`codes` takes llama.cpp's packed types apart and puts other codes in; `onnx` is the layout of onnxruntime's
MatMulNBits; `fake` rounds weights to either and back. What rounds to llama.cpp's types is always ggml's own code
(`edgeft.quant.ggml`): its scale searches depend on the order of float32 sums and on fused multiply-adds, so that a
second implementation would agree only almost always.
"""
