"""A run on disk: what its folder holds, and how it is opened and resumed."""
