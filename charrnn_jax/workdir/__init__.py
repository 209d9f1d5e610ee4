"""A run on disk: what its folder contains, and how it is opened and resumed."""
