"""Everything that a person sees: the terminal, web pages, plots."""
