"""The records and contracts that every other room speaks in; imports nothing of them."""
