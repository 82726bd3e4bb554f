"""The samples-per-insert ratio: who is ahead, and by how much, over all shards."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor

NO_LIMIT = 2**62  # fits int64, also when something is added to it


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimiter:
    """Says how many windows may be sampled, and how many may have been inserted; holds no state.

    Both sides are measured against the same line, sampled = ratio * (inserted - min_windows): what was there
    before learning began is no debt, so nothing bursts when it begins. Sampling may run ahead of the line by the
    tolerance, and inserting by as much. The tolerance is one batch or more, hence

        sampling blocked    sampled + batch > line + tolerance    so  line < sampled + batch - tolerance <= sampled
        inserting blocked   line >= sampled + tolerance           so  line > sampled

    exclude one another, whatever the batch and however many parties share the account.
    """

    samples_per_insert: float
    min_windows: int
    batch: int
    tolerance: int = 0

    def sampleable(self, inserted: int, sampled: int) -> int:
        """Return how many windows may be sampled now."""
        if inserted < self.min_windows:
            return 0
        if not self.samples_per_insert:
            return NO_LIMIT
        line = self.samples_per_insert * (inserted - self.min_windows)
        return max(0, floor(line + self._slack) - sampled)

    def insert_limit(self, sampled: int) -> int:
        """Return how many windows may have been inserted in all."""
        if not self.samples_per_insert:
            return NO_LIMIT
        return self.min_windows + ceil(min(NO_LIMIT, (sampled + self._slack) / self.samples_per_insert))

    def settled(self, inserted: int) -> int:
        """Return how many windows count as sampled when an account begins anew in the middle of a run."""
        return max(0, int(self.samples_per_insert * (inserted - self.min_windows)))

    @property
    def _slack(self) -> int:
        return max(self.tolerance, self.batch)


def insert_limits(limit: int, inserted: Sequence[int]) -> list[int]:
    """Split what may still be inserted evenly over shards; returns each one's limit.

    A shard that takes nothing holds on to no more than its last share: the others get theirs of what is left, each
    time anew and never less than one window, until all of it is used.
    """
    left = max(0, limit - sum(inserted))
    share = -(-left // len(inserted))
    return [already + share for already in inserted]
