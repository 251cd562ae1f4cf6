#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Connect so many times, send the first bytes of a UNO client, and nothing more. Answers are not read.

    silent.py CLIENTS

Writes "connected" when all are, and keeps them until its standard input ends.
"""

import resource
import socket
import sys

# The header of a block of 100 bytes, and the flags of a request.
NINE_BYTES = b"\x00\x00\x00d\x00\x00\x00\x01\xf8"


def main() -> None:
    """Connect, and wait."""
    count = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_NOFILE, (count + 100, count + 100))
    connections = []
    for _ in range(count):
        connections.append(socket.create_connection(("127.0.0.1", 2002)))
        connections[-1].sendall(NINE_BYTES)
    print("connected", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
