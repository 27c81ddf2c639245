"""Rankings of K completions: from raw rows to token ids and batches, and into and out of pairs."""
