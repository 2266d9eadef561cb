"""What a doctor looks at before hours are spent: images, sentences, batches, the parts of the model."""
