"""Configurations: fields, rules and defaults."""
