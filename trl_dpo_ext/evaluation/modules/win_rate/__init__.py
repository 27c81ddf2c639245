"""The folder that `evaluate.load` loads this metric from."""
