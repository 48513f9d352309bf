"""Which units a collection consists of: the shortest prefix 0, 1, …, n - 1 whose steps reach what was asked.

How many steps a unit has is known once it was collected: episodes may end before their limit. A unit is needed if the
units before it fall short of the request even if all that are unknown have full length. So the needed units are a
prefix that grows while steps become known, and the last of it is the same whatever the order of work.

```
asked: 100 steps, at most 40 a unit
known     40   ?  12   ?                       upper bound of the steps before a unit
before     0  40  80  92 (132)                 0 to 3 are needed; 4 is not known to be
```
"""

from __future__ import annotations

import math


class NeededUnits:
    """The units that are known to be needed, `range(end)`.

    Args:
        num_steps: steps to collect.
        max_unit_steps: steps of a unit whose episodes all have full length.

    Attributes:
        end: the needed units are those below; it never decreases.
        num_done: steps of the needed units that are known.
    """

    def __init__(self, num_steps: int, max_unit_steps: int) -> None:
        self._num_steps, self._max = num_steps, max_unit_steps
        self._steps: dict[int, int] = {}
        self._num_known = 0
        self._total = 0
        self.end = 0
        self.num_done = 0
        self._extend()

    def note(self, unit: int, num_steps: int) -> None:
        """Note the steps of a unit; noting it again changes nothing."""
        if unit in self._steps:
            return
        self._steps[unit] = num_steps
        self._total += num_steps
        if unit < self.end:
            self._count(num_steps)
            self._extend()

    def knows(self, unit: int) -> bool:
        """Whether the steps of a unit are known."""
        return unit in self._steps

    @property
    def is_complete(self) -> bool:
        """Whether the steps of all needed units are known; then no further unit is needed."""
        return self._num_known == self.end

    @property
    def expected_end(self) -> int:
        """An estimate of `end` once all is known, from the mean of the known units."""
        if not self._total:
            return self.end
        mean = self._total / len(self._steps)
        missing = self._num_steps - self.num_done - mean * (self.end - self._num_known)
        return self.end + max(math.ceil(missing / mean), 0)

    def _count(self, num_steps: int) -> None:
        self._num_known += 1
        self.num_done += num_steps

    def _extend(self) -> None:
        while self.num_done + (self.end - self._num_known) * self._max < self._num_steps:
            if (steps := self._steps.get(self.end)) is not None:
                self._count(steps)
            self.end += 1
