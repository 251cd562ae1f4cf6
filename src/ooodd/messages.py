# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every line that ooodd writes to the journal.

Each message has a fixed MESSAGE_ID: `journalctl MESSAGE_ID=...` finds it, and the catalog (systemd/ooodd.catalog,
`journalctl -x`) explains it. The braces name the fields that the caller of `log` gives. Some become fields of the
journal too, `worker` OOODD_WORKER= for example: see `journal`.
"""

from dataclasses import dataclass
from enum import IntEnum


class Priority(IntEnum):
    """The syslog(3) priorities that ooodd uses."""

    ERROR = 3
    WARNING = 4
    NOTICE = 5
    INFO = 6
    DEBUG = 7


# The levels of [log] level, those of oood.py. A message is written if its priority is at most this number.
LEVELS = {"serious": Priority.WARNING, "info": Priority.INFO, "detail": Priority.DEBUG}


@dataclass(frozen=True)
class Message:
    """One kind of line. The id has 128 bits, in hex."""

    id: str
    priority: Priority
    text: str


BROKER_READY = Message(
    "b885c22f2e2343b59b51c54237e03523", Priority.NOTICE, "ooodd {version} serves {listeners} with {workers} workers"
)
BROKER_STOPPING = Message(
    "cefd5c15f2a04b70a2e50dbb4758ccdf",
    Priority.NOTICE,
    "stopping: {sessions} sessions have {seconds:g} s to end, {queued} waiting clients are refused",
)
BROKER_UNUSED = Message(
    "aa10959359b7494ca6b405b2027ae0dd",
    Priority.NOTICE,
    "no client for {seconds:g} s: ooodd stops, the next client starts it",
)
BROKER_HANDS_OVER = Message(
    "23cb533b696e4c5bb2cc08b353a9d0e0",
    Priority.NOTICE,
    "restarting: {sessions} sessions and {queued} waiting clients are handed over to the next ooodd",
)
BROKER_TAKES_OVER = Message(
    "b5a1a21ee5aa4c67ab763895583d55c3",
    Priority.NOTICE,
    "took over from the previous ooodd: {workers} workers, {sessions} sessions, {queued} waiting clients",
)
BROKER_RELOADED = Message(
    "47c8b61020cd422fab9725d68009ea98", Priority.NOTICE, "configuration applied: {workers} workers"
)
CONFIG_REFUSED = Message(
    "ce532b9612c3495a93c0c5b0e2a68185",
    Priority.ERROR,
    "{error}; {clients} clients are connected, so the previous configuration stays in force",
)
QUEUE_BEYOND_STORE = Message(
    "fd177102929047bba3babbc2b90b0ec6",
    Priority.WARNING,
    "[queue] max_clients = {max_clients}, but only the first {kept} waiting clients outlive a restart of ooodd",
)
LISTENER_EXPOSED = Message(
    "0f6e3c1b8a7d4c52b1e09d4c7a52e6f3",
    Priority.WARNING,
    "other hosts can reach {listeners}, and everybody may use an office there: set [access] allowed_hosts",
)
BUS_LOST = Message(
    "9ceafdccb81f423d892d123564ea5a54",
    Priority.WARNING,
    "the system message bus is lost ({detail}): sessions go on, but no office is started or stopped until it is back",
)
BUS_BACK = Message("469ac10d2af94bf78827d7f9f5de4cea", Priority.NOTICE, "the system message bus is back")
POOL_PAUSED = Message(
    "efaf8e1f07824c019fe72879cf91385c",
    Priority.NOTICE,
    "paused by {by}: sessions go on, but no client gets a worker until `ooodd resume`",
)
POOL_RESUMED = Message("f80115f300134712a13929151d0ea63f", Priority.NOTICE, "resumed by {by}")
RECYCLE_ASKED = Message(
    "b735a9ab0b0e496cb1084cd860519d16",
    Priority.NOTICE,
    "{by} has {workers} recycled: idle ones now, others after their session",
)
SESSION_KICKED = Message(
    "5e56cd5e505f45e7a5892e76059953e2", Priority.NOTICE, "session {session}: {client} is sent away by {by}"
)
BROKER_FAILED = Message("51f9869e473543bdab64b5f878672223", Priority.ERROR, "{error}")
SOCKET_FAILED = Message(
    "f6e7e70b40e74d628c776d35d0535c4b",
    Priority.ERROR,
    "ooodd.socket failed ({result}): {what}",
)
INTERNAL_ERROR = Message(
    "454b11bec8d94979ac6a10a84ac4e6ac", Priority.ERROR, "internal error in {where}: {error}; ooodd goes on"
)
ACCEPT_PAUSED = Message(
    "bd1fa48efc7340f0a9278f197c34d7f9",
    Priority.ERROR,
    "can't accept clients: {error}; new ones wait in the socket, next try in {seconds:.1f} s",
)
CLIENT_NOT_UNO = Message(
    "cb18f365e85d4eb089bc2571e21790d7", Priority.DEBUG, "{client} closed: what it sent is not the UNO Remote Protocol"
)
CLIENT_SILENT = Message(
    "28004da9a4f9487e9b95d1b549508bb6",
    Priority.INFO,
    "{client} closed: it has sent nothing for {seconds:.0f} s, like {limit} other connections",
)
CLIENT_LEFT = Message(
    "2916160d546f496b87464eb21fecf841", Priority.INFO, "{client} left after waiting {wait:.1f} s for a worker"
)
CLIENT_REFUSED = Message(
    "4e7a74240b5b4c61b0a4998447530547", Priority.WARNING, "{client} refused after waiting {wait:.1f} s: {text}"
)
CLIENT_GAVE_NO_END = Message(
    "59ad9e591b3141e3aeffb104df971c16",
    Priority.INFO,
    "{client} closed: it was refused {seconds:.1f} s ago and did not close, like {limit} other refused clients",
)
CLIENT_LOST = Message(
    "cf85556e8fe74203949c57f5344e48ab",
    Priority.WARNING,
    "{client} lost: the previous ooodd was killed while it accepted this client",
)
SESSION_BEGIN = Message(
    "836660fcf22f409489eb33b97d46664d",
    Priority.INFO,
    "session {session}: {client} has worker {worker} after waiting {wait:.1f} s",
)
SESSION_END = Message(
    "a506e575731c4efe91f6025f86eee0b6",
    Priority.INFO,
    "session {session}: ended by {by} after {duration:.1f} s, {to_office} bytes to the office, {to_client} back",
)
SESSION_RECLAIMED = Message(
    "b1d9be4a7c0f4a0e9a5d1e4f5c2a7d36",
    Priority.INFO,
    "session {session}: ended after {duration:.1f} s for a client that waits: it was quiet, with no document open",
)
SESSION_LOST = Message(
    "94f8b9d7836a403194f8aa3ade51edc4",
    Priority.WARNING,
    "session {session} of {client} with worker {worker} was lost with the previous ooodd: {why}",
)
OFFICE_CHANGED = Message(
    "5d0c7f1b9f0e4a54b7a5f6a0e6d3c812",
    Priority.NOTICE,
    "another LibreOffice has been installed: {idle} offices are replaced now, {busy} after their session",
)
OFFICE_UNPACKED = Message(
    "7716a93796b940d495e25fc2c416e02f",
    Priority.NOTICE,
    "no office starts while dpkg is installing LibreOffice ({package}); worker {worker} is the first that waits",
)
OFFICE_TAKES_NO_SOCKET = Message(
    "5e0a4cf4d1c64b7a9d6e1c0b7f2a83e9",
    Priority.WARNING,
    "the office of worker {worker} can't take clients' sockets, so [data_path] mode = \"handoff\" forwards here: "
    "see journalctl -u ooodd-profile",
)
OFFICE_NOT_PRELOADED = Message(
    "b3f2d1c09c7e4e0f8a6d5c4b3a291807",
    Priority.WARNING,
    "offices start without [pool] preload from now on: worker {worker}: {detail}",
)
WORKER_OUTDATED = Message(
    "e7c1a2d40b5f4b6c8d2b9a7f3c64d05e",
    Priority.NOTICE,
    "worker {worker} runs a LibreOffice that is installed no more, and is restarted for its next client",
)
WORKER_READY = Message(
    "38067f17caa6424e91f9e2407d31a890", Priority.DEBUG, "worker {worker} is ready after {duration:.2f} s, pid {pid}"
)
WORKER_RECYCLED = Message("81a1cb8f4ecb48f39daba29d5215ff62", Priority.DEBUG, "worker {worker} is recycled: {detail}")
WORKER_CRASHED = Message(
    "930c2cccedfc4b2c98da186f9fecc18c", Priority.WARNING, "worker {worker} crashed and is restarted: {detail}"
)
WORKER_HUNG = Message(
    "4ca807db7c494251a39e89572e4cc65f",
    Priority.WARNING,
    "worker {worker} does not answer and is restarted: {detail}",
)
WORKER_DIRTY = Message(
    "5fa0532a383b470289740fa6aa87c1f6",
    Priority.INFO,
    "worker {worker} is not as it was before its session and is restarted: {detail}",
)
WORKER_NOT_STARTED = Message(
    "1f7f4f960f8d4d219f3d3e93a7a2e67e",
    Priority.ERROR,
    "worker {worker} can't be started: {detail}",
)
WORKER_NOT_STOPPED = Message(
    "61a81eeda1ff41968430451bddace2fa", Priority.ERROR, "worker {worker} can't be stopped: {detail}"
)

JOURNAL_LOST = Message(
    "436138e41f9842f88cd92ae24a25e56e", Priority.WARNING, "{lines} lines lost while journald did not accept any"
)
