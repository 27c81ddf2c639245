"""Scoring of files in parts, on any number of processes, with resuming."""
