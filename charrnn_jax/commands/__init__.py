"""The commands; each file has `add_flags(parser)` and `run(args, overrides)`."""
