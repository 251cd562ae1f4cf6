# SPDX-License-Identifier: LGPL-2.1-or-later
"""The audit of a soak: the journal is to tell of each session what its client saw, and why it ended as it did.

Pure: it takes what the clients saw, what befell the machine and the journal's entries, and returns complaints.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from ooodd import messages
from ooodd.messages import Message

Entry = dict[str, str]
Session = dict[str, Any]

# How far, in seconds, two lines may be apart that tell of the same: an office's end is known within `probe_timeout`.
NEAR = 5.0
# An entry may come so long before what it tells of has been seen by a client, or after.
SLACK = 0.25
NAMES = {value.id: name for name, value in vars(messages).items() if isinstance(value, Message)}

# What the totals of `ooodd status` count, by the message that tells of one.
TOTALS = {
    "sessions": messages.SESSION_BEGIN,
    "refused": messages.CLIENT_REFUSED,
    "recycled": messages.WORKER_RECYCLED,
    "crashed": messages.WORKER_CRASHED,
    "hung": messages.WORKER_HUNG,
    "dirty": messages.WORKER_DIRTY,
}
WORKER_FAULTS = (messages.WORKER_CRASHED, messages.WORKER_HUNG, messages.WORKER_DIRTY, messages.WORKER_RECYCLED)


@dataclass(frozen=True)
class Line:
    """One entry of the journal."""

    at: float
    kind: str
    text: str
    client: str
    session: str
    worker: str

    def __str__(self) -> str:
        return f"{self.at:.3f} {self.kind or '-'}: {self.text}"


def line(entry: Entry) -> Line:
    """Take what is of interest of an entry."""
    at = int(entry.get("_SOURCE_REALTIME_TIMESTAMP") or entry["__REALTIME_TIMESTAMP"]) / 1e6
    kind = NAMES.get(entry.get("MESSAGE_ID", ""), "")
    fields = (entry.get(f"OOODD_{name}", "") for name in ("CLIENT", "SESSION", "WORKER"))
    return Line(at, kind, entry.get("MESSAGE", ""), *fields)


@dataclass
class Report:
    """What the audit found."""

    outcomes: Counter[str] = field(default_factory=Counter)
    # Of sessions that ended by a fault: by what the journal explains them.
    causes: Counter[str] = field(default_factory=Counter)
    lines: Counter[str] = field(default_factory=Counter)
    complaints: list[str] = field(default_factory=list)


class Audit:
    """The journal, and what is asked of it."""

    def __init__(self, sessions: Iterable[Session], faults: Iterable[dict[str, Any]], entries: Iterable[Entry]) -> None:
        self._sessions = sorted(sessions, key=lambda session: float(session["begun"]))
        self._faults = list(faults)
        self._lines = sorted(map(line, entries), key=lambda each: each.at)
        self._times = [each.at for each in self._lines]
        self._by_client: dict[str, list[Line]] = defaultdict(list)
        for each in self._lines:
            if each.client:
                self._by_client[each.client].append(each)
        # A port may be used again: what is told of a client is of whoever had it last.
        self._next: dict[int, float] = {}
        last: dict[str, int] = {}
        for session in self._sessions:
            if (before := last.get(session["client"])) is not None:
                self._next[before] = session["begun"] - SLACK / 10
            last[session["client"]] = session["number"]
        self.report = Report()

    def run(self, totals: dict[str, int]) -> Report:
        """Look at everything."""
        report = self.report
        report.lines.update(each.kind for each in self._lines if each.kind)
        for session in self._sessions:
            report.outcomes[session["outcome"]] += 1
            self._check(session)
        for each in self._lines:
            if each.kind == "INTERNAL_ERROR":
                report.complaints.append(f"an internal error: {each}")
        self._check_totals(totals)
        return report

    def _check(self, session: Session) -> None:
        told = self._told(session)
        kinds = [each.kind for each in told]
        cause = ""
        if session["outcome"] == "served":
            cause = self._why_served(session, kinds)
        elif session["outcome"] == "refused":
            refused = any(each.kind == "CLIENT_REFUSED" and _text(session) in each.text for each in told)
            cause = "refused" if refused else ""
        elif not session["said"].startswith(("PROTOCOL", "NOT CLEAN")):
            cause = self._why_ended(session, told)
            self.report.causes[cause or "UNEXPLAINED"] += 1
        if not cause:
            self._complain(session, told)

    def _told(self, session: Session) -> list[Line]:
        """All that is told of its client."""
        until = self._next.get(session["number"], float("inf"))
        return [each for each in self._by_client[session["client"]] if session["begun"] - SLACK <= each.at < until]

    def _why_served(self, session: Session, kinds: list[str]) -> str:
        if "SESSION_BEGIN" in kinds and ("SESSION_END" in kinds or "SESSION_LOST" in kinds):
            return "served"
        return "broker ended" if self._broker_ended(session) else ""

    def _why_ended(self, session: Session, told: list[Line]) -> str:
        """Say what in the journal explains a session that ended by a fault; empty if nothing does."""
        for each in told:
            if cause := self._why_by(session, each):
                return cause
        kinds = {each.kind for each in told}
        if session["whose"] == "own" and not kinds and not session["received"]:
            return "left before it was admitted"
        if self._broker_ended(session):
            return f"the broker ended, {'in' if 'SESSION_BEGIN' in kinds else 'before'} its session"
        return ""

    def _why_by(self, session: Session, told: Line) -> str:
        """Say how a line about its client explains the end of a session, if it does."""
        match told.kind:
            case "SESSION_LOST":
                return f"lost with the broker: {told.text.split(': ')[-1]}"
            case "CLIENT_LEFT":
                return "left the queue"
            case "CLIENT_REFUSED" if session["whose"] == "own":
                return "refused as it left"
            case "SESSION_END":
                return self._why_session_ended(session, told)
        return ""

    def _why_session_ended(self, session: Session, end: Line) -> str:
        if session["whose"] == "own" and "by the client" in end.text:
            return "its client's own doing"
        fault = self._near(end.at, lambda each: each.worker == end.worker and each.kind in WORKER_KINDS)
        if fault is not None and (session["whose"] != "patience" or fault.kind in ("WORKER_HUNG", "WORKER_CRASHED")):
            return f"its office: {fault.kind.removeprefix('WORKER_').lower()}"
        return ""

    def _near(
        self, at: float, wanted: Callable[[Line], bool], before: float = NEAR, after: float = NEAR
    ) -> Line | None:
        start = bisect_left(self._times, at - before)
        for each in self._lines[start:]:
            if each.at > at + after:
                return None
            if wanted(each):
                return each
        return None

    def _broker_ended(self, session: Session) -> bool:
        """Whether one broker ended, and another began, while the session was under way."""
        kinds = ("BROKER_HANDS_OVER", "BROKER_TAKES_OVER", "BROKER_READY")
        lasted = session["ended"] - session["begun"]
        at = session["begun"]
        ended = self._near(at, lambda each: each.kind in kinds or "code=killed" in each.text, SLACK, lasted + SLACK)
        return ended is not None

    def _check_totals(self, totals: dict[str, int]) -> None:
        """See that the totals are those of the journal.

        A session that was counted and not yet told of when its broker was killed is begun, and counted, once more.
        """
        kills = sum("code=killed" in each.text for each in self._lines)
        for name, message in TOTALS.items():
            told = self.report.lines[NAMES[message.id]]
            more = kills if name == "sessions" else 0
            if not told <= totals[name] <= told + more:
                text = f"ooodd status counts {totals[name]} {name}, the journal tells of {told}"
                self.report.complaints.append(text)

    def _complain(self, session: Session, told: list[Line]) -> None:
        nearby = [
            each
            for each in self._lines[bisect_left(self._times, session["ended"] - 1.0) :]
            if each.at < session["ended"] + 1.0 and (not each.client or each in told) and each.kind != "WORKER_READY"
        ]
        faults = [f"{fault['kind']} {fault['said']}" for fault in self._faults if _overlap(session, fault)]
        span = f"{session['begun']:.3f} to {session['ended']:.3f}"
        said = f"{session['outcome']} {session['whose']} {session['said']!r} after {session['received']} bytes"
        lines = [
            f"session {session['number']} ({session['kind']}) of {session['client']}, {span}: {said}",
            f"    faults: {faults}",
            *(f"    its own: {each}" for each in told),
            *(f"    nearby:  {each}" for each in nearby[:12] if each not in told),
        ]
        self.report.complaints.append("\n".join(lines))


def _overlap(session: Session, fault: dict[str, Any]) -> bool:
    return bool(fault["begun"] - 1.0 <= session["ended"] and session["begun"] <= fault["ended"] + 1.0)


def _text(session: Session) -> str:
    """What ooodd said, without what its client put round it, and as far as that is sure to be there."""
    return "ooodd:" + str(session["said"]).split("ooodd:", 1)[-1][:120]


WORKER_KINDS = frozenset(NAMES[message.id] for message in WORKER_FAULTS)
