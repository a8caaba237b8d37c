from __future__ import annotations

from itertools import product

import pytest

from control_plane.decisions import Action, Sighting, Standing, decide, sight
from workflows.causes import CATALOGUE, Cause, CauseCode
from workflows.engine import Activity, Observation
from workflows.run import Desired, Phase

# The table, written out: what is known of the newest attempt, then what follows in an open phase
# if the run is wanted, by (is due, has attempts left), and if it is cancelled.
#
#        due left: yy          yn          ny          nn          cancelled
RUNS = """
pending  none      admit       admit       admit       admit       close-cancelled
open     none      begin       begin       begin       begin       close-cancelled
any      over      begin       give-up     wait        give-up     close-cancelled
any      unstarted submit      submit      submit      submit      close-cancelled
any      running   wait        wait        wait        wait        stop
any      succeeded finalise    finalise    finalise    finalise    close-cancelled
any      failed    fail        fail        fail        fail        close-cancelled
any      lost      record-loss record-loss record-loss record-loss close-cancelled
"""
FLAGS = [(due, left) for due in (True, False) for left in (1, 0)]
OPEN = ("pending", "admitted", "provisioning", "recruiting", "running", "finalizing")
CLOSED = ("succeeded", "failed", "cancelled")


def expected_table() -> dict[tuple[str, str, str, bool, bool], str]:
    words = RUNS.split()
    table = {}
    for row in range(0, len(words), 7):
        where, sighting, *actions, cancelled = words[row : row + 7]
        phases = {"pending": OPEN[:1], "open": OPEN[1:], "any": OPEN}[where]
        for phase, (flags, action) in product(phases, zip(FLAGS, actions, strict=True)):
            due, left = flags
            table[phase, "run", sighting, due, bool(left)] = action
            table[phase, "cancelled", sighting, due, bool(left)] = cancelled
    sightings = ("none", "over", "unstarted", "running", "succeeded", "failed", "lost")
    for phase, desired, sighting, flags in product(CLOSED, ("run", "cancelled"), sightings, FLAGS):
        due, left = flags
        table[phase, desired, sighting, due, bool(left)] = "settle"
    return table


def test_the_decision_is_as_written_for_every_combination() -> None:
    decided = {
        (phase, desired, sighting, due, left): decide(
            Standing(
                phase=phase,
                desired=desired,
                sighting=sighting,
                is_due=due,
                has_attempts=left,
            )
        )
        for phase, desired, sighting, due, left in product(
            Phase, Desired, Sighting, (True, False), (True, False)
        )
    }

    assert len(decided) == 9 * 2 * 7 * 4
    assert {tuple(map(str_or_bool, k)): str(v) for k, v in decided.items()} == expected_table()


def test_every_action_is_decided_somewhere() -> None:
    assert set(expected_table().values()) == {str(action) for action in Action}


@pytest.mark.parametrize(
    ("observation", "was_heard", "expected"),
    [
        (None, False, "unstarted"),
        (None, True, "lost"),
        (Observation(activity=Activity.RUNNING), False, "running"),
        (Observation(activity=Activity.SUCCEEDED), False, "succeeded"),
        (Observation(activity=Activity.CANCELLED), False, "lost"),
        (Observation(activity=Activity.LOST), False, "lost"),
        (Observation(activity=Activity.FAILED), False, "lost"),
    ],
)
def test_an_observation_means(
    observation: Observation | None, was_heard: bool, expected: str
) -> None:
    assert sight(observation, was_heard=was_heard) == expected


@pytest.mark.parametrize("code", list(CauseCode))
def test_a_failure_is_for_good_unless_its_cause_may_pass(code: CauseCode) -> None:
    seen = sight(Observation(activity=Activity.FAILED, cause=Cause(code=code)), was_heard=True)

    assert seen == ("lost" if CATALOGUE[code].retryable else "failed")


def str_or_bool(value: object) -> object:
    return value if isinstance(value, bool) else str(value)
