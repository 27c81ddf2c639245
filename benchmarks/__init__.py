"""Seconds and memory of an optimizer step: TRL's `DPOTrainer`, this package's, and plain next-token training."""
