"""The report of a sweep: statistics, effects, scaling laws, figures, and the page itself."""
