"""A VELM plugin: the image encoder `convmixer` and the text encoder `textcnn`."""
