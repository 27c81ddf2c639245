"""Detection of likelihood displacement: preferred answers that become less likely, which the loss does not show."""

__all__ = ["DisplacementWatch"]

_LOGS = 10
_NATS = 1.0


class DisplacementWatch:
    """
    Warns when the log-probability of preferred answers keeps falling below its value under the reference.

    DPO's loss only depends on the margin: both answers may become less likely, and their probability moves to others
    ("likelihood displacement", [Razin et al., 2024](https://huggingface.co/papers/2410.08847)). The warning is given
    once, when the drift was negative in the last ten logs, has fallen over them, and is below -1 nat.
    """

    def __init__(self) -> None:
        self._negative: list[float] = []
        self._warned = False

    def add(self, chosen: float, rejected: float | None) -> str | None:
        """
        Adds `logps/chosen_drift` and `logps/rejected_drift` of a log.

        Returns:
            `str` or `None`: The warning, if it is due.
        """
        self._negative = [*self._negative, chosen][-_LOGS:] if chosen < 0 else []
        falls = len(self._negative) == _LOGS and chosen < self._negative[0] and chosen < -_NATS
        if self._warned or not falls:
            return None
        self._warned = True
        of_rejected = "" if rejected is None else f" (rejected answers: {-rejected:.3g})"
        return (
            f"Likelihood displacement: the log-probability of preferred answers is {-chosen:.3g} nats lower than "
            f"under the reference{of_rejected}, and fell over the last {_LOGS} logs. The loss only depends on the "
            "margin, so both answers of a pair may become less likely, in favor of answers that are in no pair. Look "
            "at samples (`log_samples=8`). Try fewer updates, a smaller `learning_rate` or a larger `beta`; "
            "Preferred-FT first, so that preferred answers are likely under the reference; an SFT term "
            '(`loss_type=["sigmoid", "sft"]`); or leave out pairs whose answers are nearly the same.'
        )
