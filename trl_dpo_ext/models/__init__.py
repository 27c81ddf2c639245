"""A model before it is run: its weights, LM head, vocabulary and positions."""
