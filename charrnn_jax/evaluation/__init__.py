"""Evaluation: how well a model predicts a text, under a named protocol."""
