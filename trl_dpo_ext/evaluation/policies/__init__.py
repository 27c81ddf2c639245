"""How far a policy has come: reward, KL, best of N and win rate over its reference, with standard errors."""
