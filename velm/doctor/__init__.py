"""What a doctor looks at before hours are spent: pictures, sentences, batches, the parts of the model."""
