"""Conversions between pairs, rankings and scored completions, and rows of public datasets."""
