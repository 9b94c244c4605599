"""Tables and pictures of docs/ from results/."""
