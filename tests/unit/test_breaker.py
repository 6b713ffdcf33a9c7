"""The breaker, on a clock that stands still until told."""

from backburner.redis.breaker import FIRST_PAUSE, LONGEST_PAUSE, Breaker


class Clock:
    time = 0.0

    def __call__(self) -> float:
        return self.time


def _breaker() -> tuple[Breaker, Clock, list[object]]:
    clock, said = Clock(), []
    return Breaker(on_open=lambda *told: said.append(told), on_close=said.append, clock=clock), clock, said


def test_the_first_failure_opens_it_and_calls_fail_at_once() -> None:
    breaker, clock, said = _breaker()
    assert breaker.allows()
    error = OSError("refused")
    breaker.failed(error)
    assert breaker.open
    assert breaker.cause is error
    assert not breaker.allows()
    clock.time += FIRST_PAUSE * 0.9
    assert not breaker.allows()
    assert said == [(FIRST_PAUSE, error)]


def test_after_the_pause_one_caller_may_try() -> None:
    breaker, clock, _ = _breaker()
    breaker.failed(OSError())
    clock.time += FIRST_PAUSE
    assert [breaker.allows() for _ in range(5)] == [True, False, False, False, False]


def test_success_closes_it_and_tells_for_how_long_it_was_open() -> None:
    breaker, clock, said = _breaker()
    breaker.failed(OSError())
    clock.time += 2.0
    assert breaker.allows()
    breaker.succeeded()
    breaker.succeeded()
    assert not breaker.open
    assert breaker.allows()
    assert said[1:] == [2.0]


def test_pauses_double_up_to_a_second_and_only_the_first_is_told() -> None:
    breaker, clock, said = _breaker()
    breaker.failed(OSError())
    pauses = []
    for _ in range(6):
        began = clock.time
        while not breaker.allows():
            clock.time += 0.01
        pauses.append(round(clock.time - began, 1))
        breaker.failed(OSError())
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    assert len(said) == 1


def test_calls_that_began_before_it_opened_do_not_lengthen_the_pause() -> None:
    breaker, clock, _ = _breaker()
    for _ in range(40):
        breaker.failed(OSError())
    clock.time += FIRST_PAUSE
    assert breaker.allows()


def test_a_caller_that_never_reports_back_does_not_keep_others_out_for_ever() -> None:
    breaker, clock, _ = _breaker()
    breaker.failed(OSError())
    clock.time += FIRST_PAUSE
    assert breaker.allows()
    clock.time += LONGEST_PAUSE
    assert breaker.allows()
