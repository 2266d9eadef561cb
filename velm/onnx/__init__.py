"""Models exported by `velm export --format onnx`, run by onnxruntime. Nothing here imports torch."""

from velm.onnx.pipeline import Caption, OnnxPipeline, load

__all__ = ["Caption", "OnnxPipeline", "load"]
