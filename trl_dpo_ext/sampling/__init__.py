"""Sampling from a causal language model, one token of every row at a time, the same bits on every run."""
