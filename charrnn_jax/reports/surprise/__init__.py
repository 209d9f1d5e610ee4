"""A text with the surprise of a model, or of two, at each of its characters."""
