"""ONNX folders for onnxruntime, onnxruntime-genai, optimum and transformers.js, written straight from safetensors.

`export.export_onnx` writes decoders: each architecture has a file under `architectures/` with the numbers its graph
needs; names and shapes of its tensors are those of the GGUF exporter. `graph.Graph` collects nodes and announces
weights, `data_file` fills the file they lie in, a few rows at a time.
"""
