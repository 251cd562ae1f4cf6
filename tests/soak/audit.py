# SPDX-License-Identifier: LGPL-2.1-or-later
"""The audit of a soak: the journal is to tell of each session what its client saw, and why it ended as it did.

Pure: it takes what the clients saw, what befell the machine and the journal's entries, and returns complaints.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ooodd import messages
from ooodd.messages import Message

Entry = dict[str, str]
Session = dict[str, Any]

# So long before a client saw its end, in seconds, the broker may have been killed that it blames for that.
BLAME = 1.0
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
# These lines are complaints in themselves.
BAD = frozenset({"INTERNAL_ERROR", "BROKER_FAILED", "SOCKET_FAILED", "ACCEPT_PAUSED"})
# So systemd tells that the broker was killed.
KILLED = "code=killed"


@dataclass(frozen=True)
class Line:
    """One entry of the journal."""

    at: float
    kind: str
    text: str
    client: str
    session: str
    worker: str
    # Whether the broker wrote it, and not systemd about the broker.
    own: bool

    def __str__(self) -> str:
        return f"{self.at:.3f} {self.kind or '-'}: {self.text}"


def line(entry: Entry) -> Line:
    """Take what is of interest of an entry."""
    at = int(entry.get("_SOURCE_REALTIME_TIMESTAMP") or entry["__REALTIME_TIMESTAMP"]) / 1e6
    kind = NAMES.get(entry.get("MESSAGE_ID", ""), "")
    client, session, worker = (entry.get(f"OOODD_{name}", "") for name in ("CLIENT", "SESSION", "WORKER"))
    own = entry.get("SYSLOG_IDENTIFIER") == "ooodd"
    return Line(at, kind, entry.get("MESSAGE", ""), client, session, worker, own)


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
        self._kills = sum(KILLED in each.text for each in self._lines)
        self._by_client: dict[str, list[Line]] = defaultdict(list)
        self._by_session: dict[str, list[Line]] = defaultdict(list)
        self._by_worker: dict[str, list[Line]] = defaultdict(list)
        for each in self._lines:
            if each.client:
                self._by_client[each.client].append(each)
            if each.session:
                self._by_session[each.session].append(each)
            if each.worker:
                self._by_worker[each.worker].append(each)
        # A port may be used again: what is told of a client is of whoever had it last.
        self._next: dict[int, float] = {}
        last: dict[str, Session] = {}
        for session in self._sessions:
            if (before := last.get(session["client"])) is not None:
                self._next[before["number"]] = max(session["begun"] - SLACK / 10, before["ended"])
            last[session["client"]] = session
        self.report = Report()

    def run(self, totals: dict[str, int]) -> Report:
        """Look at everything."""
        report = self.report
        report.lines.update(each.kind for each in self._lines if each.kind)
        for session in self._sessions:
            report.outcomes[session["outcome"]] += 1
            self._check(session)
        report.complaints += [f"ought not to be: {text}" for text in self._bad_lines()]
        self._check_pairs()
        self._check_totals(totals)
        return report

    def _bad_lines(self) -> list[str]:
        """Return what ought not to be, all lines of a traceback as one text."""
        texts: list[str] = []
        end = 0.0
        for each in filter(_is_bad, self._lines):
            if each.kind or not texts or each.at > end + SLACK:
                texts.append(str(each))
            else:
                texts[-1] += f"\n    {each.text}"
            end = each.at
        return texts

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
        told = [each for each in self._by_client[session["client"]] if session["begun"] - SLACK <= each.at < until]
        # A broker that takes over a session whose client has reset it can't learn the client's name, but the number.
        numbers = {each.session for each in told if each.session}
        return told + [each for number in numbers for each in self._by_session[number] if each not in told]

    def _why_served(self, session: Session, kinds: list[str]) -> str:
        if "SESSION_BEGIN" in kinds and ("SESSION_END" in kinds or "SESSION_LOST" in kinds):
            return "served"
        return self._broker_ended(session)

    def _why_ended(self, session: Session, told: list[Line]) -> str:
        """Say what in the journal explains a session that ended by a fault; empty if nothing does."""
        for each in told:
            if cause := self._why_by(session, each):
                return cause
        kinds = {each.kind for each in told}
        if how := self._broker_ended(session):
            return f"the broker was {how}, {'in' if 'SESSION_BEGIN' in kinds else 'before'} its session"
        return ""

    def _why_by(self, session: Session, told: Line) -> str:
        """Say how a line about its client explains the end of a session, if it does."""
        match told.kind:
            case "SESSION_LOST":
                return f"lost with the broker: {told.text.split(': ')[-1]}"
            case "CLIENT_LOST":
                return "lost with the broker: it had just been accepted"
            case "CLIENT_LEFT":
                return "left the queue"
            case "CLIENT_REFUSED" if session["whose"] == "own":
                return "refused as it left"
            case "SESSION_END":
                return self._why_session_ended(session, told)
        return ""

    def _why_session_ended(self, session: Session, end: Line) -> str:
        fault = self._fault_of_office(end)
        if session["whose"] == "own" and "by the client" in end.text:
            return "its client's own doing"
        if session["whose"] == "patience":  # the client's own doing, too, if its office was well
            return f"its office: {fault}" if fault in ("hung", "crashed") else ""
        return f"its office: {fault}" if fault else ""

    def _fault_of_office(self, end: Line) -> str:
        """Say what the journal tells of the office itself, in its session or at its end, before it goes on."""
        lines = self._by_worker[end.worker]
        at = lines.index(end)
        first = next((i for i in range(at, -1, -1) if _begins(lines[i], end.session)), at)
        for each in lines[first + 1 :]:
            match each.kind:
                case "SESSION_BEGIN" | "WORKER_READY":
                    return ""
                case "WORKER_CRASHED":
                    return "crashed"
                case "WORKER_HUNG":
                    return "hung"
                case "WORKER_RECYCLED" if "exit" in each.text or "ended" in each.text.split(": ", 1)[-1]:
                    return "ended by itself"
        return ""

    def _broker_ended(self, session: Session) -> str:
        """Say how a broker ended, if one did just before the client saw its own end."""
        start = bisect_left(self._times, session["ended"] - BLAME)
        for each in self._lines[start:]:
            if each.at > session["ended"] + SLACK:
                break
            if KILLED in each.text:
                return "killed"
            if each.kind == "BROKER_HANDS_OVER":
                return "restarted"
        return ""

    def _check_pairs(self) -> None:
        """See that each session that the journal has begin ends there once.

        One that ends as its broker is killed may have been forgotten, but not told of.
        """
        begun = Counter(each.session for each in self._lines if each.kind == "SESSION_BEGIN")
        ended = Counter(each.session for each in self._lines if each.kind in ("SESSION_END", "SESSION_LOST"))
        endless = sorted(session for session in begun if not ended[session])
        if len(endless) > self._kills:
            self.report.complaints.append(f"the journal has sessions {endless} begin, and not end")
        wrong = sorted(n for n in begun | ended if ended[n] > 1 or begun[n] > 1 or (ended[n] and not begun[n]))
        # Killed between the lease and the line about it.
        if len(wrong) > self._kills:
            self.report.complaints.append(f"the journal has sessions {wrong} begin or end more than once, or only end")

    def _check_totals(self, totals: dict[str, int]) -> None:
        """See that the totals are those of the journal.

        A session that was counted and not yet told of when its broker was killed is begun, and counted, once more. What
        is told first and counted then, all else, is so quickly: one in a run may be missed.
        """
        for name, message in TOTALS.items():
            told = self.report.lines[NAMES[message.id]]
            less, more = min(1, self._kills), self._kills if name == "sessions" else 0
            if not told - less <= totals[name] <= told + more:
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


def _begins(line_: Line, session: str) -> bool:
    return line_.kind == "SESSION_BEGIN" and line_.session == session


def _is_bad(line_: Line) -> bool:
    """Whether a line tells of a failure of ooodd's, or is none of its messages: a traceback, a warning of Python's."""
    return line_.kind in BAD or (line_.own and not line_.kind)
