"""Metrics of preferences in the layout of Hugging Face `evaluate`: pass a folder to `evaluate.load`."""
