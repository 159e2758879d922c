"""Several processes: `accelerate` set up for a run, and weights that are spread over processes."""
