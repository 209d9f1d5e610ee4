"""Reports of what was trained: honest statistics, and files to look at and to publish."""
