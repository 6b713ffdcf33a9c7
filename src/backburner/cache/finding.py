"""What a look into the store has found for `remember`, and whether it answers the caller. Pure, except for `look`."""

from dataclasses import dataclass
from typing import Final, Self

from backburner.cache.engine import MISSING, Engine
from backburner.cache.entry import Decision, Entry
from backburner.cache.plan import Plan


@dataclass(frozen=True, slots=True)
class Finding:
    """An entry, the decision about it, and its value. By default, nothing."""

    entry: Entry | None = None
    decision: Decision = Decision.MISS
    value: object = MISSING
    """`MISSING` if the entry is a miss, cannot be read, or does not fit the reader's type."""
    sure: bool = True
    """If there is no entry: whether the key is known to be empty. It may also hold bytes that cannot be read."""

    @classmethod
    def of(cls, engine: Engine, key: str, plan: Plan, entry: Entry | None, decision: Decision) -> Self:
        """The finding for an entry that an engine has judged."""
        value = MISSING if entry is None or decision is Decision.MISS else engine.value(key, entry, plan.shape)
        return cls(entry, Decision.MISS if value is MISSING else decision, value)

    def serves(self, plan: Plan) -> bool:
        """Whether to return the value without waiting for the callback."""
        match self.decision:
            case Decision.STALE:
                return plan.in_background
            case Decision.RESTING:
                return plan.in_background or plan.throttle > 0
            case decision:
                return decision.fresh

    @property
    def stale(self) -> bool:
        return not self.decision.fresh

    @property
    def mark(self) -> bytes | None:
        """The mark of what the server must still hold under the key to grant a lease; ``None``: anything."""
        if self.entry is None:
            return b"" if self.sure else None
        return self.entry.mark


NO_STORE: Final = Finding()
"""The finding when the store has failed; recognised by identity."""


async def look(engine: Engine, key: str, plan: Plan) -> Finding:
    """Look for the entry of a key.

    Raises:
        StoreError: the store failed.
    """
    return Finding.of(engine, key, plan, *await engine.judge(key))
