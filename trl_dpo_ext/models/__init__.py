"""Checks and adjustments of models before they are run: weights, LM head, vocabulary and positions."""
