"""Sweeps: many runs of one experiment, how they are launched, and their progress."""
