"""Token ids to losses: windows, batches, common prefixes, and the backends that score them."""
