"""Two encoders for VELM that live outside of it: `convmixer` for images, `textcnn` for sentences."""
