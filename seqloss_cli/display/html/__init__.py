"""Results as a web page in one file."""
