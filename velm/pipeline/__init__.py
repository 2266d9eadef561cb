"""Inference with a trained model: images and texts in, captions, embeddings and similarities out. No Lightning."""

from velm.errors import PipelineError
from velm.pipeline.captioner import Caption
from velm.pipeline.loading import load
from velm.pipeline.pipeline import Pipeline

__all__ = ["Caption", "Pipeline", "PipelineError", "load"]
