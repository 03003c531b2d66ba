"""Terminal, pages, and plots for papers: views of results on the same scales of colour."""
