"""The logs of a run: metrics, distributions, samples and messages."""
