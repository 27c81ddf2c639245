"""Preference objectives: pure functions from log-probabilities to one loss per prompt. They depend only on torch."""

from .dpo import dpo_loss
from .plackett_luce import plackett_luce_loss
from .preferred_ft import preferred_ft_loss
from .unlikelihood import token_unlikelihood_loss, unlikelihood_loss


__all__ = ["dpo_loss", "plackett_luce_loss", "preferred_ft_loss", "token_unlikelihood_loss", "unlikelihood_loss"]
