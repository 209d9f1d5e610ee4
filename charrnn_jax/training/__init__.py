"""Training: optimizer, train step, hooks, and the loop on one or many devices."""
