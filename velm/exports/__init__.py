"""Models of VELM for other programs: a folder to publish, transformers, open_clip."""

from velm.exports.change import Sample
from velm.exports.formats import FORMATS, Exported, export
from velm.exports.hub import from_pretrained, push_to_hub

__all__ = ["FORMATS", "Exported", "Sample", "export", "from_pretrained", "push_to_hub"]
