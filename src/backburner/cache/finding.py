"""What a look at the store brought, and whether it answers the caller's question. Pure, but for `look` itself."""

from dataclasses import dataclass
from typing import Final, Self

from backburner.cache.engine import MISSING, Engine
from backburner.cache.entry import Decision, Entry
from backburner.cache.plan import Plan


@dataclass(frozen=True, slots=True)
class Finding:
    """An entry, what it is good for, and its value; nothing, by default."""

    entry: Entry | None = None
    decision: Decision = Decision.MISS
    value: object = MISSING
    """`MISSING` where the entry must not be given to anybody, cannot be read, or does not fit."""
    sure: bool = True
    """Whether there is nothing where no entry was found; else it may be bytes that cannot be read."""

    @classmethod
    def of(cls, engine: Engine, key: str, plan: Plan, entry: Entry | None, decision: Decision) -> Self:
        """What an engine's judgement of a key comes to."""
        value = MISSING if entry is None or decision is Decision.MISS else engine.value(key, entry, plan.shape)
        return cls(entry, Decision.MISS if value is MISSING else decision, value)

    def serves(self, plan: Plan) -> bool:
        """Whether the value is to be given without waiting for the callback."""
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
        """What the server must still have under the key to grant a lease; ``None``: anything."""
        if self.entry is None:
            return b"" if self.sure else None
        return self.entry.mark


NO_STORE: Final = Finding()
"""Found when the store does not answer: to be told apart by identity."""


async def look(engine: Engine, key: str, plan: Plan) -> Finding:
    """Look for the entry of a key.

    Raises:
        StoreError: the store cannot tell.
    """
    return Finding.of(engine, key, plan, *await engine.judge(key))
