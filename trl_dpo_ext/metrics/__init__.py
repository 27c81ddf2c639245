"""Preference metrics in plain torch. Trainers log them, and `evaluation/modules` offers them as `evaluate` metrics."""
