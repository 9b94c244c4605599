"""On which machine, at which commit, by which command."""
