"""Metrics of a log window or an evaluation, summed over batches and, when they are read, over processes."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from trl_dpo_ext.metrics.sums import Sums


__all__ = ["Meter"]


class Meter:
    """
    Metrics over any number of micro-batches and processes. Processes only synchronize in [`totals`].

    Example:
    ```python
    >>> import torch
    >>> from trl_dpo_ext.metrics.sums import means, results
    >>> from trl_dpo_ext.trainers.logs.meter import Meter

    >>> meter = Meter()
    >>> meter.add(means({"loss": torch.tensor([1.0, 2.0, 3.0])}, torch.ones(3)))
    >>> meter.add(means({"loss": torch.tensor([1.0])}, torch.ones(1)))
    >>> results(meter.totals(lambda sums: sums))
    {'loss': 1.75}

    ```
    """

    def __init__(self) -> None:
        self._sums: dict[str, Sums] = {}
        self._carried: dict[str, Tensor] = {}

    def __bool__(self) -> bool:
        return bool(self._sums)

    def add(self, sums: Mapping[str, Sums]) -> None:
        """Adds the sums of a batch."""
        for name, entry in sums.items():
            if name in self._carried:
                carried = self._carried.pop(name).to(entry.values)
                entry = replace(entry, values=carried + entry.values)
            self._sums[name] = self._sums[name] + entry if name in self._sums else entry

    def held(self) -> dict[str, Tensor]:
        """The accumulated sums of this process (on the CPU), for a checkpoint."""
        return {name: entry.values.cpu() for name, entry in self._sums.items()}

    def carry(self, held: Mapping[str, Tensor]) -> None:
        """Continues from the sums that a checkpoint holds: the next batches add to them."""
        self._carried = dict(held)

    def totals(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, Sums]:
        """
        Returns and resets the accumulated sums (on the CPU).

        Args:
            reduce (`Callable`):
                Sums a tensor over all processes. It is called once.
        """
        entries, self._sums = self._sums, {}
        if not entries:
            return {}
        sizes = [len(entry.values) for entry in entries.values()]
        totals = reduce(torch.cat([entry.values for entry in entries.values()])).cpu().split(sizes)
        return {
            name: replace(entry, values=total) for (name, entry), total in zip(entries.items(), totals, strict=True)
        }
