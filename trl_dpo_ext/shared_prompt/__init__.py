"""A prompt is computed once for all its completions, and no padding is computed."""
