"""One page on a run, drawn from what the run wrote about itself."""
