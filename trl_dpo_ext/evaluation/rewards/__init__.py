"""Rewards of completions behind one protocol, `f(prompts, completions)`: functions, classifiers, reward models."""
