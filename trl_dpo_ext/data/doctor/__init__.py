"""Examination of preference and ranking datasets before training, with the functions that training uses."""
