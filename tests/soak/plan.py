# SPDX-License-Identifier: LGPL-2.1-or-later
"""The plan of a soak: which session does what, and what befalls the machine meanwhile. All of it follows from a seed.

The same seed and number of sessions give the same plan. When exactly something happens to a session, and to which of
the offices that run just then, depends on timing all the same.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

# What a session is, of 1,000. The first speak raw URP, the others, one of ten, are real clients with pyuno.
KINDS = {
    "talk": 710,
    "half-close": 50,  # sends its last word, closes its sending side, reads to the end
    "gone": 40,  # ends in mid-session, as a client that is killed
    "gone-amid-call": 40,  # and with a call under way
    "reset": 40,
    "leave": 20,  # gives up at once, in the queue if it has to wait
    "convert": 50,
    "convert-killed": 12,  # killed amid loading
    "left-open": 20,  # ends in order, but for the document
    "held-killed": 13,  # killed with a document open and no call under way
    "abort": 3,  # has its office kill itself with signal 6
    "basic-loop": 2,  # hangs its office and is killed
}
REAL = frozenset({"convert", "convert-killed", "left-open", "held-killed", "abort", "basic-loop"})
# Sessions that end as they should, if nothing befalls them.
ORDERLY = frozenset({"talk", "half-close", "convert", "left-open"})

# What befalls the machine, of 1,000 sessions; each at least once, but for what no longer fits in.
FAULTS = {
    "worker-kill": 10,
    "worker-abort": 4,
    "worker-stop": 3,
    "broker-kill": 4,
    "broker-restart": 4,
    "reload": 4,
    "bus-restart": 2,
    "polkit-stop": 2,
    "burst": 3,
}
BURST = 60
"""Clients at once; so many that the queue overflows."""

DOCUMENTS = ("letter.odt", "letter.docx", "letter.rtf", "sheet.ods", "sheet.xlsx")


@dataclass(frozen=True)
class Session:
    """What one client does."""

    number: int
    kind: str
    # How often it has the office list what is open, and before which of its answers it pauses or comes to its end.
    rounds: int
    turn: int
    # In seconds.
    pause: float
    document: str
    # Comes together with others, whoever else is there.
    burst: bool = False


@dataclass(frozen=True)
class Fault:
    """What happens as a session begins."""

    before: int
    kind: str
    # Says which of the offices, as a share of their number.
    choice: float


def make(sessions: int, seed: int) -> tuple[list[Session], list[Fault]]:
    """Make the plan."""
    chance = random.Random(seed)
    kinds = [kind for kind, of_1000 in FAULTS.items() for _ in range(max(1, round(of_1000 * sessions / 1000)))]
    bursts = kinds.count("burst")
    # Something befalls as one of the other sessions begins; most often nothing does.
    turns = kinds + [""] * max(0, sessions - bursts * (BURST - 1) - len(kinds))
    chance.shuffle(turns)
    plan: list[Session] = []
    faults: list[Fault] = []
    for kind in turns:
        room = sessions - len(plan)
        number = len(plan) + 1
        if kind == "burst":
            plan += [_session(chance, number + more, burst=True) for more in range(min(BURST, room))]
        elif room:
            if kind:
                faults.append(Fault(number, kind, chance.random()))
            plan.append(_session(chance, number, burst=False))
    return plan, faults


def _session(chance: random.Random, number: int, *, burst: bool) -> Session:
    kind = _pick(chance, KINDS)
    return Session(
        number=number,
        kind="talk" if burst else kind,
        rounds=chance.randint(1, 4),
        turn=chance.randint(1, 8),
        pause=chance.expovariate(1 / 0.02),
        document=chance.choice(DOCUMENTS),
        burst=burst,
    )


def _pick(chance: random.Random, weights: dict[str, int]) -> str:
    (kind,) = chance.choices(list(weights), list(weights.values()))
    return kind
