"""Models of other libraries as checkpoints: `hf/...`, `open_clip/...`; a path is a checkpoint of VELM."""

from velm.sources.foreign import ForeignModel, is_foreign
from velm.sources.open import describe_source, open_source, open_weights

__all__ = ["ForeignModel", "describe_source", "is_foreign", "open_source", "open_weights"]
