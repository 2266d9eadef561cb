"""Inference with a trained model: images and texts in, captions, embeddings and similarities out. No Lightning."""

from velm.errors import PipelineError
from velm.pipeline.captioner import Caption
from velm.pipeline.identity import model_hash
from velm.pipeline.loading import load
from velm.pipeline.pipeline import Pipeline
from velm.pipeline.readable import encode_readable

__all__ = ["Caption", "Pipeline", "PipelineError", "encode_readable", "load", "model_hash"]
