"""Checks of options before anything is loaded."""
