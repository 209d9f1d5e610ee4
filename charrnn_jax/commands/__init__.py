"""What each command does: `add_flags(parser)`, and `run(args, overrides)`."""
