"""Pages of results: each in one HTML file that loads nothing."""
