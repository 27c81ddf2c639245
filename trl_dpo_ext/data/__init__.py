"""Columns, checks, prompts, tokens and cuts: from raw rows to token ids."""
