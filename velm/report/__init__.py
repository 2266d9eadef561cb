"""The HTML report of `velm evaluate`: metrics with intervals, images, captions with attention maps, training curves."""
