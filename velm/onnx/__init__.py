"""Models exported by `velm export --format onnx`, run by onnxruntime. Nothing here imports torch."""
