"""What a training step takes, on any number of devices, worked out before there are any."""
