"""What a step computes: forwards, the reference, and what must hold of an update."""
