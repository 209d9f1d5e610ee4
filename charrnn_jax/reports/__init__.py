"""Reports about trained models: pages to read, and files to publish."""
