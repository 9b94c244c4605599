"""How each model trains, samples and is scored in a run."""
