"""The options of `remember` and its kin, checked, and turned into a `Plan`.

Pure: nothing is waited for or stored here; that is up to `remember`. What a callback can decide is in `context`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from random import random
from typing import Any, Final, Self, TypedDict

from backburner.cache.entry import Duration, seconds
from backburner.cache.shape import Shape
from backburner.errors import CodecError

THROTTLE: Final = 1.0
"""Default for the option `throttle`, in seconds."""


class FlexibleOptions(TypedDict, total=False):
    """Options of `flexible`. A duration is seconds, a `timedelta`, or text such as ``"10m"``.

    With a timeout, the callback runs in a thread of its own (in asyncio: in a task), with a copy of the caller's
    context variables, and goes on after the timeout. Its result is stored, unless the key has been written or removed,
    or a tag flushed, in the meantime. So it must not use what belongs to the caller's request, such as its database
    session.
    """

    none_ttl: Duration
    """How long the value ``None`` is kept, which often means "not found"; `grace` does not apply to it. 0: it is not
    stored, and the previous value is removed. Default: as long as any other value."""
    jitter: Duration
    """By how much, at most, each entry's lifetime is shortened at random, so that entries made together do not expire
    together. A number from 0 to 1 is a fraction of the ttl; a `timedelta` or text is a duration."""
    soft_timeout: Duration
    """How long to wait for the callback if there is a previous value that may still be returned (see `grace`)."""
    hard_timeout: Duration
    """How long to wait for a value at all; then `CallbackTimeout` is raised."""
    throttle: Duration
    """After the callback has failed and the previous value was returned: how long everybody, in all processes, gets
    that value without another call. Default: 1 second."""


class Options(FlexibleOptions, total=False):
    """Options of `remember` and its kin, `remember_many` included, and of `@cached`."""

    grace: Duration
    """How long a value is kept beyond its ttl, to be returned if the callback fails. Default: 0, not at all."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How a key is to be read through. Times are seconds."""

    callback: Callable[..., Any]
    lifetime: float
    """How long the value is fresh."""
    tags: Sequence[str] = ()
    grace: float = 0.0
    """How long it is kept beyond that."""
    in_background: bool = False
    """Whether a value past its freshness is returned at once and renewed afterwards."""
    soft_timeout: float = math.inf
    hard_timeout: float = math.inf
    none_lifetime: float | None = None
    jitter_fraction: float = 0.0
    jitter_seconds: float = 0.0
    throttle: float = THROTTLE
    of_list: bool = False
    """Whether the callback is for several keys, and may leave this one out."""
    shape: Shape | None = None
    """What the caller requires the value to be."""

    @classmethod
    def of(
        cls,
        callback: Callable[..., Any],
        lifetime: float,
        tags: Sequence[str],
        options: Mapping[str, Any],
        *,
        shape: Shape | None = None,
    ) -> Self:
        """The plan that options describe.

        Raises:
            TypeError: there is no such option.
            ValueError: one is invalid.
        """
        for name in options:
            if name not in Options.__annotations__:
                raise TypeError(f"there is no option {name!r}; there are {', '.join(sorted(Options.__annotations__))}")
        given = {name: option for name, option in options.items() if option is not None}
        jitter = given.pop("jitter", 0)
        times = {name: _duration(name, option) for name, option in given.items()}
        soft, hard = times.get("soft_timeout", math.inf), times.get("hard_timeout", math.inf)
        if hard == 0:
            raise ValueError("hard_timeout=0: a callback needs some time; write hard_timeout=2")
        if hard < soft < math.inf:
            raise ValueError(
                f"soft_timeout={soft:g} is longer than hard_timeout={hard:g}: who has a value to fall back on waits "
                "less, not more"
            )
        as_fraction = isinstance(jitter, (int, float)) and not isinstance(jitter, bool)
        if as_fraction and not 0 <= jitter <= 1:
            raise ValueError(f"jitter={jitter!r}: write a fraction from 0 to 1, or a duration such as '30s'")
        return cls(
            callback,
            lifetime,
            tags,
            times.get("grace", 0.0),
            soft_timeout=soft,
            hard_timeout=hard,
            none_lifetime=times.get("none_ttl"),
            jitter_fraction=jitter if as_fraction else 0.0,
            jitter_seconds=0.0 if as_fraction else _duration("jitter", jitter),
            throttle=times.get("throttle", THROTTLE),
            shape=shape,
        )

    @classmethod
    def flexible(
        cls,
        callback: Callable[..., Any],
        ttl: tuple[Duration, Duration],
        tags: Sequence[str],
        options: Mapping[str, Any],
        *,
        shape: Shape | None = None,
    ) -> Self:
        """The plan of ``ttl=(fresh, stale)``: stale values are returned, and renewed in the background.

        Raises:
            TypeError: as `of`.
            ValueError: as `of`, or the pair is invalid.
        """
        try:
            first, second = ttl
        except (TypeError, ValueError):
            raise ValueError(
                f"ttl={ttl!r}: write how long a value is fresh and how long it may be given: ('1m', '10m')"
            ) from None
        fresh, stale = seconds(first), seconds(second)
        if stale < fresh:
            raise ValueError(f"ttl={ttl!r}: a value cannot be too old to be given before it is too old to be fresh")
        if options.get("grace") is not None:
            raise ValueError(f"ttl={ttl!r} says how long a value is kept; with it there is no grace")
        return replace(cls.of(callback, fresh, tags, options, shape=shape), grace=stale - fresh, in_background=True)

    def given(self, key: str, value: object) -> object:
        """What the caller gets for a computed value. What is stored is the value itself: other readers may ask for
        another type.

        Raises:
            CodecError: the value does not fit the caller's type.
        """
        if self.shape is None:
            return value
        try:
            return self.shape.fit(value)
        except CodecError as error:
            raise CodecError(f"the callback for {key!r} gave a {type(value).__name__}, and {error}") from error

    @property
    def timed(self) -> bool:
        """Whether the caller may leave before the callback ends."""
        return self.soft_timeout < math.inf or self.hard_timeout < math.inf

    @property
    def longest(self) -> float:
        """How long the entry lives at most, unless the callback changes its ttl."""
        return max(self.lifetime + self.grace, self.none_lifetime or 0.0)

    def times(self, value: object, lifetime: float) -> tuple[float, float]:
        """How long a value is fresh, and how long it is kept beyond that, if its ttl is `lifetime`."""
        if value is None and self.none_lifetime is not None and lifetime == self.lifetime:
            return self.none_lifetime, 0.0
        if lifetime <= 0 and not (self.in_background and lifetime == self.lifetime):
            return lifetime, 0.0  # as everywhere, a ttl of nothing removes
        if not 0 < lifetime < math.inf:
            return lifetime, self.grace
        spread = max(self.jitter_seconds, self.jitter_fraction * lifetime)
        return lifetime - random() * min(spread, lifetime), self.grace  # noqa: S311  # no secret


def _duration(name: str, option: object) -> float:
    try:
        length = seconds(option)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    if length < 0:
        raise ValueError(f"{name}={option!r}: a duration is not negative")
    return length
