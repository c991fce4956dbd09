"""Linear attention: a state that is updated from step to step instead of scores of all pairs."""
