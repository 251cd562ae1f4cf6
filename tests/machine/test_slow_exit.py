# SPDX-License-Identifier: LGPL-2.1-or-later
"""An office that its client terminates, and whose process needs a second more to exit than to close its pipe."""

import subprocess
from pathlib import Path

from deadline import until
from ooodd import messages
from places import CLIENTS, PYTHON
from service import PATIENCE, Service

LIBRARY = "/usr/lib/slow-exit.so"
SECONDS = 2
# The office's exit(3) or _exit(2) takes this long.
SOURCE = f"""
#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>
static void delay(void)
{{
    if (!strcmp(program_invocation_short_name, "soffice.bin")) sleep({SECONDS});
}}
__attribute__((noreturn)) void _exit(int status)
{{
    delay();
    syscall(SYS_exit_group, status);
    __builtin_unreachable();
}}
__attribute__((destructor)) static void leave(void)
{{
    delay();
}}
"""
TERMINATE = (
    "import sys; sys.path.insert(0, sys.argv[1]); from client import connect, create; "
    "create(connect('127.0.0.1', 2002), 'com.sun.star.frame.Desktop').terminate()"
)


def test_an_office_that_is_terminated_and_exits_late_is_no_crash(fresh_service: Service, tmp_path: Path) -> None:
    service, library = fresh_service, tmp_path / "slow-exit.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, "-xc", "-"], input=SOURCE, text=True, check=True)
    service.machine.copy_in(library, LIBRARY)
    with service.drop_in("ooodd-worker@.service", f"[Service]\nUnsetEnvironment=\nEnvironment=LD_PRELOAD={LIBRARY}\n"):
        service.configure('[pool]\nworkers = 1\n[log]\nlevel = "detail"\n')
        moment = service.machine.journal_moment()
        service.start()
        service.wait_idle()
        service.machine.run(PYTHON, "-c", TERMINATE, str(CLIENTS))
        recycled = service.machine.wait_journal(
            "ooodd.service", f"MESSAGE_ID={messages.WORKER_RECYCLED.id}", after=moment, timeout=PATIENCE
        )
        ended = service.line(messages.SESSION_END, moment)
        late = (int(recycled["__REALTIME_TIMESTAMP"]) - int(ended["__REALTIME_TIMESTAMP"])) / 1e6
        print(f"{late:.2f} s from the end of the session to that of the process: {recycled['MESSAGE']}")
        until(lambda: service.totals()["recycled"] == 1, PATIENCE, "the recycling")
        assert late >= SECONDS * 0.9
        assert {name: count for name, count in service.totals().items() if count} == {"sessions": 1, "recycled": 1}
        assert service.serves()
