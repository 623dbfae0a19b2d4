"""The parts of a data set that are not used: how many, why, and three names of each kind, in one line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

_NAMED = 3


@dataclass
class LeftOut:
    """What is left out, by reason.

    Attributes:
        counts: How many are left out for each reason.
        names: The first three names for each reason.
    """

    counts: Counter[str] = field(default_factory=Counter)
    names: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, names: Iterable[str]) -> None:
        """Count the names, and keep the first of them."""
        kept = self.names.setdefault(reason, [])
        for name in names:
            self.counts[reason] += 1
            if len(kept) < _NAMED:
                kept.append(name)

    def take(self, other: LeftOut, prefix: str = "") -> None:
        """Add everything in another one, with the prefix before its names."""
        for reason, count in other.counts.items():
            self.add(reason, (prefix + name for name in other.names[reason]))
            self.counts[reason] += count - len(other.names[reason])

    def in_words(self, what: str) -> str | None:
        """How many are left out, why, and three of each kind; None where there are none.

        Args:
            what: What they are and that they are left out.
        """
        kinds = [
            f"{count:,} {reason} ({', '.join(self.names[reason])}{', ...' if count > _NAMED else ''})"
            for reason, count in self.counts.items()
            if count
        ]
        return f"{self.counts.total():,} {what}: {'; '.join(kinds)}" if kinds else None
