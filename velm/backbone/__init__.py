"""The image encoder of a model as a backbone for detection and segmentation: images to maps of several sizes."""

from velm.backbone.backbone import Backbone, FeatureInfo
from velm.backbone.folder import load_backbone, write_backbone
from velm.backbone.pyramid import SimpleFeaturePyramid

__all__ = ["Backbone", "FeatureInfo", "SimpleFeaturePyramid", "load_backbone", "write_backbone"]
