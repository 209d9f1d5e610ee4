"""How well a model predicts a text, by protocols that are stated."""
