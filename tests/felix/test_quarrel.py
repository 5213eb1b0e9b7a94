"""How long a change by another program waits for its repair."""

from __future__ import annotations

from felix.quarrel import CALM_S, PATIENCE, PAUSE_MAX_S, Quarrel


def test_changes_now_and_then_are_put_right_at_once() -> None:
    quarrel = Quarrel()
    assert [quarrel.hear(number * (CALM_S + 0.1)) for number in range(50)] == [0.0] * 50
    assert not quarrel.on


def test_a_quarrel_is_said_once_and_answered_ever_slower() -> None:
    quarrel, now, pauses, said = Quarrel(), 0.0, [], 0
    for _ in range(2000):
        pauses.append(quarrel.hear(now))
        said += quarrel.begins
        now += 0.01 + pauses[-1]
    assert pauses[:PATIENCE] == [0.0] * PATIENCE
    assert pauses[PATIENCE:] == sorted(pauses[PATIENCE:])
    assert 0 < pauses[PATIENCE] < pauses[-1] == PAUSE_MAX_S
    assert said == 1
    assert quarrel.hear(now + CALM_S) == 0.0, "after a calm all is as at first"
