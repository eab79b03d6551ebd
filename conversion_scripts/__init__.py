"""One module a foreign checkpoint format, both directions."""
