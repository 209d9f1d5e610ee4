"""Text from a model. Knows a model, its parameters and a vocabulary; no files."""
