# SPDX-License-Identifier: LGPL-2.1-or-later
"""The unit files: what has to be the same in several of them, since a unit can't include another."""

from collections import Counter
from pathlib import Path

SYSTEMD = Path(__file__).resolve().parents[2] / "systemd"
# What the profile's unit does not need or must not have: what belongs to one office, and limits of its log.
OF_ONE_OFFICE = {
    "BindPaths=%t/ooodd-worker/%i",
    "BindReadOnlyPaths=-/var/cache/private/ooodd-profile:/etc",
    "CPUWeight=100",
    "LogRateLimitBurst=200",
    "LogRateLimitIntervalSec=30s",
    "ProcSubset=pid",
    "ReadOnlyPaths=+/tmp +/var/tmp",
    "TemporaryFileSystem=%t/ooodd-worker/home:mode=0777,size=512M,nr_inodes=16k,nosuid,nodev,noexec",
}
# What it has instead: it reads /proc/locks, so it has the whole of /proc.
OF_THE_PROFILE = {"ProtectKernelTunables=yes"}
# And from what the office's /etc is made.
SOURCE = ":/run/etc/"
DPKG = "-/var/lib/dpkg "


def walls(unit: str) -> Counter[str]:
    """The settings of a unit from its root directory on, without comments."""
    text = (SYSTEMD / unit).read_text()
    lines = text[text.index("RootDirectory=") :].splitlines()
    return Counter(line for line in lines if line and not line.startswith("#"))


def test_the_profile_is_made_behind_the_same_walls_as_an_office() -> None:
    office, profile = walls("ooodd-worker@.service"), walls("ooodd-profile.service")
    assert set(office) >= OF_ONE_OFFICE
    for line in OF_ONE_OFFICE:
        del office[line]
    assert set(profile) >= OF_THE_PROFILE
    for line in [*OF_THE_PROFILE, *(line for line in profile if SOURCE in line)]:
        del profile[line]
    assert Counter({line.replace(DPKG, ""): count for line, count in profile.items()}) == office


def test_what_is_set_for_all_services_reaches_neither() -> None:
    texts = [(SYSTEMD / unit).read_text() for unit in ("ooodd-worker@.service", "ooodd-profile.service")]
    office, profile = ([line for line in text.splitlines() if line.startswith("UnsetEnvironment=")] for text in texts)
    assert office == profile
    assert office
