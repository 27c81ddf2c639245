"""Options of sampling, with their checks."""

import math
from dataclasses import dataclass


__all__ = ["SamplingOptions"]

_SAMPLES_PER_PART = 512  # samples depend on it in their last bits, so it is not an option


@dataclass(frozen=True)
class SamplingOptions:
    """
    The distribution that is sampled, and the random numbers that it is sampled with.

    The defaults sample the policy itself. transformers' own default keeps the 50 most likely tokens (`top_k=50`),
    which samples another distribution. It is off here.

    Args:
        num_samples (`int`, *optional*, defaults to `1`):
            Number of samples of each prompt.
        temperature (`float`, *optional*, defaults to `1.0`):
            Divisor of the logits. 0 takes the most likely token.
        top_k (`int`, *optional*, defaults to `0`):
            Number of most likely tokens that are kept. 0 keeps all.
        top_p (`float`, *optional*, defaults to `1.0`):
            The most likely tokens are kept up to the one with which their probability reaches `top_p`.
        max_new_tokens (`int`, *optional*, defaults to `256`):
            Maximum number of tokens of a sample.
        seed (`int`, *optional*, defaults to `0`):
            Seed.

    Raises:
        ValueError: If a value is out of range.
    """

    num_samples: int = 1
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    max_new_tokens: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("num_samples", 1), ("top_k", 0), ("max_new_tokens", 1), ("seed", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least or value >= 2**63:
                raise ValueError(f"`{name}={value!r}` must be a whole number of at least {least}.")
        if not (0 <= self.temperature < math.inf):
            raise ValueError(f"`temperature={self.temperature}` must be a finite number of at least 0.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"`top_p={self.top_p}` must be above 0 and at most 1.")

    @property
    def prompts_per_part(self) -> int:
        """Number of prompts that are computed together."""
        return max(1, _SAMPLES_PER_PART // self.num_samples)
