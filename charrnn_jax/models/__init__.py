"""Recurrent language models: sizes in, logits out. They know nothing of text."""
