"""The reward-KL frontier of the paper's Sec. 6.1: many runs from one model, each measured during training."""
