"""One number of a machine: how much, how sure, and where it comes from."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor
from typing import Final

from planner.choices import RateOrigin
from planner.errors import InvalidInputError
from planner.spelling import shown

MOST_RATE: Final = 10**16
"""Above any rate of a device in bytes, operations or picoseconds; sums of times stay within 64 bits."""

_BUSY_RATIO: Final = 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """One number of a machine, in the unit that the name of its field ends in.

    Args:
        value: what is counted with, from 1 to 10**16.
        origin: "measured", "table" or "user".
        low, high: within which the true number is held to lie: the slowest and fastest measurement, or by the table's uncertainty.
        source: where it comes from, in words.

    Raises:
        InvalidInputError: a number out of range, or a value outside of low and high.

    Example:
        >>> rate = Rate.of_table(1_000, 0.3, "data sheet")
        >>> rate.low, rate.high, round(rate.uncertainty, 2)
        (700, 1300, 0.3)
    """

    value: int
    origin: RateOrigin
    low: int
    high: int
    source: str = ""

    def __post_init__(self) -> None:
        for what in ("value", "low", "high"):
            number = getattr(self, what)
            if type(number) is not int or not 1 <= number <= MOST_RATE:
                raise InvalidInputError(f"{what} must be an int from 1 to 10**16, got {shown(number)}")
        if not self.low <= self.value <= self.high:
            raise InvalidInputError(f"value {self.value} is not within low {self.low} and high {self.high}")

    @classmethod
    def of_table(cls, value: int, uncertainty: float, source: str) -> Rate:
        """A number of a data sheet. Args: ``uncertainty``: how far off it may be, as a share of it. Raises: as the class."""
        low, high = max(1, floor(value * (1 - uncertainty))), ceil(value * (1 + uncertainty))
        return cls(value=value, origin="table", low=low, high=min(high, MOST_RATE), source=source)

    @classmethod
    def of_user(cls, value: int) -> Rate:
        """A number that somebody vouches for. Raises: as the class."""
        return cls(value=value, origin="user", low=value, high=value)

    @property
    def uncertainty(self) -> float:
        """How far the true number may be from the value, as a share of it."""
        return max(self.high - self.value, self.value - self.low) / self.value

    @property
    def is_busy(self) -> bool:
        """Whether measurements differ so much that something else must have been running."""
        return self.origin == "measured" and self.high > _BUSY_RATIO * self.low

    def scaled(self, factor: float, why: str) -> Rate:
        """Another number that follows from this one. Args: ``why``: how, for the source."""
        value, low, high = (
            min(MOST_RATE, max(1, round(each * factor))) for each in (self.value, self.low, self.high)
        )
        source = f"{self.source}; {why}" if self.source else why
        return Rate(value=value, origin=self.origin, low=low, high=high, source=source)
