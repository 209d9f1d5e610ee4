"""Many runs of one experiment: what they are, how they run, where they stand."""
