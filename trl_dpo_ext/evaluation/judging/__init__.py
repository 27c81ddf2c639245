"""Verdicts of people and judges on pairs of completions, and how far they agree."""
