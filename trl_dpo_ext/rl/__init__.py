"""Reinforcement learning on Eq. 3 of the DPO paper: RLOO and PPO, the baselines of its experiments."""
