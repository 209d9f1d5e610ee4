"""Training: state, step, checkpoints, loop."""
