# SPDX-License-Identifier: LGPL-2.1-or-later
"""The plan of a soak: what each session does, and which faults are injected meanwhile. A seed determines it.

The same seed and number of sessions give the same plan. When exactly a fault happens in a session, and which of the
running offices it hits, also depends on timing.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

# The kinds of sessions, with their number in 1,000. Those in UNO_KINDS, one of ten, use pyuno, the others a socket.
KINDS = {
    "talk": 690,
    "quiet": 20,  # says nothing for a while, between two of its calls
    "half-close": 50,  # sends its last bytes, closes its sending side, reads to the end
    "gone": 40,  # disconnects in the middle, as a killed client does
    "gone-during-call": 40,  # disconnects during a call
    "reset": 40,
    "leave": 20,  # disconnects at once, also from the queue
    "convert": 50,
    "convert-killed": 12,  # killed while it loads
    "left-open": 20,  # ends in order, but does not close the document
    "held-killed": 13,  # killed with a document open and no call under way
    "abort": 3,  # makes its office kill itself with signal 6
    "basic-loop": 2,  # hangs its office and is killed
}
UNO_KINDS = frozenset({"convert", "convert-killed", "left-open", "held-killed", "abort", "basic-loop"})

# The faults, with their number in 1,000 sessions. Each happens at least once, if there are enough sessions.
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
"""The number of clients that come at once. The queue is shorter."""

QUIET = 2.5
"""How long a quiet client says nothing, in seconds. By default it may be ended after one."""

DOCUMENTS = ("letter.odt", "letter.docx", "letter.rtf", "sheet.ods", "sheet.xlsx")


@dataclass(frozen=True)
class Session:
    """What one client does."""

    number: int
    kind: str
    # How often it lists the open documents, and before which of its messages it pauses or disconnects.
    rounds: int
    pause_before: int
    # In seconds.
    pause: float
    document: str
    # Whether it is one of the clients that come at once.
    burst: bool = False


@dataclass(frozen=True)
class Fault:
    """A fault that happens when a session begins."""

    before: int
    kind: str
    # Selects one of the running offices, as a fraction of their number.
    choice: float


def make(sessions: int, seed: int) -> tuple[list[Session], list[Fault]]:
    """Return the sessions and the faults of the plan."""
    rng = random.Random(seed)
    kinds = [kind for kind, of_1000 in FAULTS.items() for _ in range(max(1, round(of_1000 * sessions / 1000)))]
    bursts = kinds.count("burst")
    # One entry for each burst, and for each session outside of bursts: "burst", its fault, or none.
    starts = kinds + [""] * max(0, sessions - bursts * (BURST - 1) - len(kinds))
    rng.shuffle(starts)
    plan: list[Session] = []
    faults: list[Fault] = []
    for kind in starts:
        room = sessions - len(plan)
        number = len(plan) + 1
        if kind == "burst":
            plan += [_session(rng, number + more, burst=True) for more in range(min(BURST, room))]
        elif room:
            if kind:
                faults.append(Fault(number, kind, rng.random()))
            plan.append(_session(rng, number, burst=False))
    return plan, faults


def _session(rng: random.Random, number: int, *, burst: bool) -> Session:
    kind = _pick(rng, KINDS)
    return Session(
        number=number,
        kind="talk" if burst else kind,
        rounds=rng.randint(1, 4),
        pause_before=rng.randint(1, 8),
        pause=QUIET if kind == "quiet" else rng.expovariate(1 / 0.02),
        document=rng.choice(DOCUMENTS),
        burst=burst,
    )


def _pick(rng: random.Random, weights: dict[str, int]) -> str:
    (kind,) = rng.choices(list(weights), list(weights.values()))
    return kind
