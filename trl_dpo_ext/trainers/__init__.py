"""The trainers and their options."""
