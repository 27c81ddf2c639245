"""Pairs, rankings and scored completions into each other, and rows of public data sets."""
