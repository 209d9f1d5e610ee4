"""Reports of what was trained: pages to look at, and files to publish."""
