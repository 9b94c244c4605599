"""One configuration: its fields, their rules and defaults."""
