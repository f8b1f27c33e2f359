"""The documents' names for what this room does: thin adapters, async as the documents have them."""
