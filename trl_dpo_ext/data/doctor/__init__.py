"""Examines a preference or ranking data set before anybody trains on it, with the functions that training uses."""
