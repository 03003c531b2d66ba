"""Plots for papers: drawn with matplotlib, from the numbers of `analysis`."""
