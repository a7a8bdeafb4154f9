"""What is wrong with data, found without loading a model."""
