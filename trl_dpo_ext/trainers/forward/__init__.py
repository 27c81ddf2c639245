"""Forward passes of a training step: policy, reference, and checks of an update."""
