"""A trained policy with its reference as a reward model."""
