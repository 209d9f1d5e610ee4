"""The units of a run on a page: a text coloured by each, and what each follows and does."""
