"""Samples of a policy that do not depend on how they are computed."""
