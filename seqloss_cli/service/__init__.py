"""A loaded model behind HTTP: `seqloss serve`."""
