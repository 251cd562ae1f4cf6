# SPDX-License-Identifier: LGPL-2.1-or-later
"""The audit of a soak: the journal must explain what each client saw, and why its session ended.

The audit does no I/O. It takes what the clients saw, the faults and the journal's entries, and returns complaints.
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

# A kill of the broker explains the end of a session if it came at most this long before the end, in seconds.
KILL_WINDOW = 1.0
# An entry may be this much earlier or later than the client saw what it reports, in seconds.
SLACK = 0.25
NAMES = {value.id: name for name, value in vars(messages).items() if isinstance(value, Message)}

# The totals of `ooodd status`, with the message that reports each of what they count.
TOTALS = {
    "sessions": messages.SESSION_BEGIN,
    "refused": messages.CLIENT_REFUSED,
    "recycled": messages.WORKER_RECYCLED,
    "crashed": messages.WORKER_CRASHED,
    "hung": messages.WORKER_HUNG,
    "dirty": messages.WORKER_DIRTY,
    "reclaimed": messages.SESSION_RECLAIMED,
}
# Each of these lines is a complaint.
FAILURES = frozenset({"INTERNAL_ERROR", "BROKER_FAILED", "SOCKET_FAILED", "ACCEPT_PAUSED"})
# What became of a client without an office.
LEFT = {"CLIENT_LOST": "lost with the broker: it had just been accepted", "CLIENT_LEFT": "left the queue"}
# systemd's message about a killed broker has this text.
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
    # Whether the broker wrote it, and not systemd.
    own: bool

    def __str__(self) -> str:
        return f"{self.at:.3f} {self.kind or '-'}: {self.text}"


def line(entry: Entry) -> Line:
    """Return the `Line` of an entry."""
    at = int(entry.get("_SOURCE_REALTIME_TIMESTAMP") or entry["__REALTIME_TIMESTAMP"]) / 1e6
    kind = NAMES.get(entry.get("MESSAGE_ID", ""), "")
    client, session, worker = (entry.get(f"OOODD_{name}", "") for name in ("CLIENT", "SESSION", "WORKER"))
    own = entry.get("SYSLOG_IDENTIFIER") == "ooodd"
    return Line(at, kind, entry.get("MESSAGE", ""), client, session, worker, own)


@dataclass
class Report:
    """The result of the audit."""

    outcomes: Counter[str] = field(default_factory=Counter)
    # The causes of the sessions that ended by a fault, from the journal.
    causes: Counter[str] = field(default_factory=Counter)
    lines: Counter[str] = field(default_factory=Counter)
    complaints: list[str] = field(default_factory=list)


class Audit:
    """The checks of the journal."""

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
        # A port may be used again. A line about a client belongs to the last session with this port.
        self._next: dict[int, float] = {}
        last: dict[str, Session] = {}
        for session in self._sessions:
            if (before := last.get(session["client"])) is not None:
                self._next[before["number"]] = max(session["begun"] - SLACK / 10, before["ended"])
            last[session["client"]] = session
        self.report = Report()

    def run(self, totals: dict[str, int]) -> Report:
        """Run all checks."""
        report = self.report
        report.lines.update(each.kind for each in self._lines if each.kind)
        for session in self._sessions:
            report.outcomes[session["outcome"]] += 1
            self._check(session)
        report.complaints += [f"unexpected line: {text}" for text in self._unexpected_lines()]
        self._check_pairs()
        self._check_totals(totals)
        return report

    def _unexpected_lines(self) -> list[str]:
        """Return unexpected lines. All lines of a traceback are one text."""
        texts: list[str] = []
        end = 0.0
        for each in filter(_is_unexpected, self._lines):
            if each.kind or not texts or each.at > end + SLACK:
                texts.append(str(each))
            else:
                texts[-1] += f"\n    {each.text}"
            end = each.at
        return texts

    def _check(self, session: Session) -> None:
        own_lines = self._lines_about(session)
        kinds = [each.kind for each in own_lines]
        cause = ""
        if session["outcome"] == "served":
            cause = self._why_served(session, kinds)
        elif session["outcome"] == "refused":
            refused = any(each.kind == "CLIENT_REFUSED" and _text(session) in each.text for each in own_lines)
            cause = "refused" if refused else ""
        elif not session["said"].startswith(("PROTOCOL", "NOT CLEAN")):
            cause = self._why_ended(session, own_lines)
            self.report.causes[cause or "UNEXPLAINED"] += 1
        if not cause:
            self._complain(session, own_lines)

    def _lines_about(self, session: Session) -> list[Line]:
        """Return all lines about the session's client."""
        until = self._next.get(session["number"], float("inf"))
        own_lines = [each for each in self._by_client[session["client"]] if session["begun"] - SLACK <= each.at < until]
        # If the client has reset the connection, a broker that adopts its session knows only the number.
        numbers = {each.session for each in own_lines if each.session}
        return own_lines + [each for number in numbers for each in self._by_session[number] if each not in own_lines]

    def _why_served(self, session: Session, kinds: list[str]) -> str:
        if "SESSION_BEGIN" in kinds and ("SESSION_END" in kinds or "SESSION_LOST" in kinds):
            return "served"
        return self._broker_ended(session)

    def _why_ended(self, session: Session, own_lines: list[Line]) -> str:
        """Return what in the journal explains a session that ended by a fault, or an empty text."""
        for each in own_lines:
            if cause := self._why_by(session, each):
                return cause
        kinds = {each.kind for each in own_lines}
        if how := self._broker_ended(session):
            return f"the broker was {how}, {'in' if 'SESSION_BEGIN' in kinds else 'before'} its session"
        return ""

    def _why_by(self, session: Session, reported: Line) -> str:
        """Return how a line about the client explains the end of its session, or an empty text."""
        match reported.kind:
            case "SESSION_LOST":
                return f"lost with the broker: {reported.text.split(': ')[-1]}"
            case "CLIENT_LOST" | "CLIENT_LEFT" as kind:
                return LEFT[kind]
            case "CLIENT_REFUSED":
                return self._why_refusal_ended(session, reported)
            case "SESSION_END":
                return self._why_session_ended(session, reported)
            case "SESSION_RECLAIMED":  # any may be slow for a second, on a busy machine
                return "it was quiet, and its office was needed"
        return ""

    def _why_refusal_ended(self, session: Session, refused: Line) -> str:
        if session["whose"] == "own":
            return "refused as it left"
        # A client may be in a pause, and see late that nobody says the rest of its refusal.
        how = self._broker_ended(session, refused.at)
        return f"the broker was {how} as it refused it" if how else ""

    def _why_session_ended(self, session: Session, end: Line) -> str:
        fault = self._fault_of_office(end)
        if session["whose"] == "own" and "by the client" in end.text:
            return "its client ended it"
        if session["whose"] == "timeout":  # explained only if its office failed
            return f"its office: {fault}" if fault in ("hung", "crashed") else ""
        return f"its office: {fault}" if fault else ""

    def _fault_of_office(self, end: Line) -> str:
        """Return the fault of the office, from the begin of the session to the next use, or an empty text."""
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

    def _broker_ended(self, session: Session, since: float | None = None) -> str:
        """Return how a broker ended just before the client saw its end, or since a time, or an empty text."""
        start = bisect_left(self._times, session["ended"] - KILL_WINDOW if since is None else since)
        for each in self._lines[start:]:
            if each.at > session["ended"] + SLACK:
                break
            if KILLED in each.text:
                return "killed"
            if each.kind == "BROKER_HANDS_OVER":
                return "restarted"
        return ""

    def _check_pairs(self) -> None:
        """Check that each session that begins in the journal ends there once.

        If the broker is killed while a session ends, the line may be missing.
        """
        begun = Counter(each.session for each in self._lines if each.kind == "SESSION_BEGIN")
        ended = Counter(
            each.session for each in self._lines if each.kind in ("SESSION_END", "SESSION_LOST", "SESSION_RECLAIMED")
        )
        endless = sorted(session for session in begun if not ended[session])
        if len(endless) > self._kills:
            self.report.complaints.append(f"sessions {endless} begin in the journal and do not end")
        wrong = sorted(n for n in begun | ended if ended[n] > 1 or begun[n] > 1 or (ended[n] and not begun[n]))
        # The broker may have been killed between the lease and the line about it.
        if len(wrong) > self._kills:
            self.report.complaints.append(f"sessions {wrong} begin or end in the journal more than once, or only end")

    def _check_totals(self, totals: dict[str, int]) -> None:
        """Check that the totals agree with the journal.

        If the broker is killed after it has counted a session and before the line, the session begins and is counted
        again. Everything else is counted after its line, so one may be missing in a run.
        """
        for name, message in TOTALS.items():
            count = self.report.lines[NAMES[message.id]]
            less, more = min(1, self._kills), self._kills if name == "sessions" else 0
            if not count - less <= totals[name] <= count + more:
                text = f"ooodd status counts {totals[name]} {name}, the journal has {count}"
                self.report.complaints.append(text)

    def _complain(self, session: Session, own_lines: list[Line]) -> None:
        nearby = [
            each
            for each in self._lines[bisect_left(self._times, session["ended"] - 1.0) :]
            if each.at < session["ended"] + 1.0
            and (not each.client or each in own_lines)
            and each.kind != "WORKER_READY"
        ]
        faults = [f"{fault['kind']} {fault['said']}" for fault in self._faults if _overlap(session, fault)]
        span = f"{session['begun']:.3f} to {session['ended']:.3f}"
        said = f"{session['outcome']} {session['whose']} {session['said']!r} after {session['received']} bytes"
        lines = [
            f"session {session['number']} ({session['kind']}) of {session['client']}, {span}: {said}",
            f"    faults: {faults}",
            *(f"    its own: {each}" for each in own_lines),
            *(f"    nearby:  {each}" for each in nearby[:12] if each not in own_lines),
        ]
        self.report.complaints.append("\n".join(lines))


def _overlap(session: Session, fault: dict[str, Any]) -> bool:
    return bool(fault["begun"] - 1.0 <= session["ended"] and session["begun"] <= fault["ended"] + 1.0)


def _text(session: Session) -> str:
    """Return the beginning of ooodd's text, without what the client's library put around it."""
    return "ooodd:" + str(session["said"]).split("ooodd:", 1)[-1][:120]


def _begins(line_: Line, session: str) -> bool:
    return line_.kind == "SESSION_BEGIN" and line_.session == session


def _is_unexpected(line_: Line) -> bool:
    """Whether a line reports a failure of ooodd, or is not one of its messages, such as a traceback or a warning."""
    return line_.kind in FAILURES or (line_.own and not line_.kind)
