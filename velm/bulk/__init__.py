"""Millions of images on many machines: `velm embed` and `velm caption --output`, written part by part."""
