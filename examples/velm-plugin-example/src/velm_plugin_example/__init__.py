"""Two encoders for VELM that live outside of it: `convmixer` for pictures, `textcnn` for sentences."""
