"""Samples of a policy, in memory and in files."""
