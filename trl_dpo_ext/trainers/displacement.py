"""Notices when preferred answers become less likely, which DPO's loss does not show."""

__all__ = ["DisplacementWatch"]

_LOGS = 10
_NATS = 1.0


class DisplacementWatch:
    """
    Watches how far the preferred answers' log-probability has drifted from the reference's.

    DPO's loss only asks for a margin: both answers may become less likely, and their probability goes to others
    ("likelihood displacement", [Razin et al., 2024](https://huggingface.co/papers/2410.08847)). One warning is due
    when the drift has been negative in ten logs running, is lower at their end than at their start, and below -1 nat.
    """

    def __init__(self) -> None:
        self._negative: list[float] = []
        self._warned = False

    def add(self, chosen: float, rejected: float | None) -> str | None:
        """
        Adds a log's `logps/chosen_drift` and `logps/rejected_drift`.

        Returns:
            `str` or `None`: The warning, once.
        """
        self._negative = [*self._negative, chosen][-_LOGS:] if chosen < 0 else []
        falls = len(self._negative) == _LOGS and chosen < self._negative[0] and chosen < -_NATS
        if self._warned or not falls:
            return None
        self._warned = True
        beside = "" if rejected is None else f", that of the rejected ones by {-rejected:.3g}"
        return (
            f"The preferred answers' log-probability is {-chosen:.3g} nats below the reference's{beside}, and has "
            f"fallen over the last {_LOGS} logs: likelihood displacement. The loss only asks that the margin between "
            "the answers grow, and both may become less likely, in favour of answers that are in no pair. Look at "
            "samples (`log_samples=8`). What helps: fewer updates, a smaller `learning_rate` or a larger `beta`; "
            "Preferred-FT first, so that the preferred answers are likely under the reference; an SFT term "
            '(`loss_type=["sigmoid", "sft"]`); leaving out pairs whose answers are nearly the same.'
        )
