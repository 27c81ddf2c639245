"""Checks of a model before it is run: its LM head, its vocabulary and its positions."""
