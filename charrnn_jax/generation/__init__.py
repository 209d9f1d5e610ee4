"""Text generation. Knows a model, its parameters and a vocabulary, but not where they come from."""
