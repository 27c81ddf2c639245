"""Trainers and their options."""
