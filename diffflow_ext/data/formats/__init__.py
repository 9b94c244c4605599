"""File formats, one module each, read without executing anything."""
