"""A trained model at work: images and sentences in, captions, embeddings and similarities out. No Lightning."""

from velm.errors import PipelineError
from velm.pipeline.loading import load
from velm.pipeline.pipeline import Pipeline
from velm.pipeline.writer import Caption

__all__ = ["Caption", "Pipeline", "PipelineError", "load"]
