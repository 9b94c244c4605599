"""Whether everything holds on this GPU."""
