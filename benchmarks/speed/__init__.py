"""What a step, an op or a byte costs."""
