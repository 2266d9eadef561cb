"""The model and its builder: two encoders, two projections and an optional decoder, from one config."""

from velm.model.build import MODEL_KEYS, build_model, needs_of
from velm.model.model import ALL_OUTPUTS, VisionLanguageModel

__all__ = ["ALL_OUTPUTS", "MODEL_KEYS", "VisionLanguageModel", "build_model", "needs_of"]
