# SPDX-License-Identifier: LGPL-2.1-or-later
"""Makes a package of Debian's again from its installed files, so that dpkg can unpack it without a network."""

from __future__ import annotations

from machine import Machine

# In the machine: repack PACKAGE PREINST POSTINST, scripts as text. dpkg-deb does not compress: that would take minutes.
SCRIPT = r"""
set -eu
tree=/var/tmp/repack/$1
mkdir -p "$tree/DEBIAN"
dpkg-query --listfiles "$1" | while read -r path; do [ -d "$path" ] && [ ! -L "$path" ] || echo "$path"; done \
    | tar --create --no-recursion --files-from=- --absolute-names --transform="s,^/,," \
    | tar --extract --directory="$tree"
dpkg-query --status "$1" | sed '/^Status:/d; /^Conffiles:/,/^[^ ]/{/^Conffiles:/d; /^ /d}' >"$tree/DEBIAN/control"
conffiles=/var/lib/dpkg/info/$1.conffiles
[ ! -e "$conffiles" ] || cp "$conffiles" "$tree/DEBIAN/"
printf '#!/bin/sh\n%s\n' "$2" >"$tree/DEBIAN/preinst"
printf '#!/bin/sh\n%s\n' "$3" >"$tree/DEBIAN/postinst"
chmod 755 "$tree/DEBIAN/preinst" "$tree/DEBIAN/postinst"
dpkg-deb --root-owner-group -Znone --build "$tree" "/var/tmp/repack/$1.deb" >/dev/null
rm -rf "$tree"
"""


def repack(machine: Machine, package: str, preinst: str = ":", postinst: str = ":") -> str:
    """Make the package in the machine, with these scripts, and return its path there."""
    machine.run("sh", "-c", SCRIPT, "repack", package, preinst, postinst, check=True, timeout=120)
    return f"/var/tmp/repack/{package}.deb"
