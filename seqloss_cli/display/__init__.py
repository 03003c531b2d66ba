"""What a person sees: the terminal, pages, and plots for papers, on the same scales of colour."""
