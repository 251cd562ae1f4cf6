# SPDX-License-Identifier: LGPL-2.1-or-later
"""The profile with which an office starts, made once for all that is installed.

An empty profile has two costs. LibreOffice looks for extensions at the first start, unless the profile says by a file
that a certain build has done so (`user/extensions/buildid`). And where an extension is installed for all users, the
first start registers it and ends with status 81, "start me again". So with extensions a profile is made by a start of
its own, without clients, and offices get copies of it. `ooodd-profile.service` keeps it in a cache; `data/start-office`
copies it, or makes one where there is none.

The settings are ours, but for those that the site has in LibreOffice's registry, and on top of them the site's own for
ooodd: /etc/ooodd/registry.d/*.xcu, in the format of a profile's registrymodifications.xcu.
"""

import filecmp
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree as ET
from xml.etree.ElementTree import Element

from ooodd.errors import ConfigError, StartError

SITE_SETTINGS = Path("/etc/ooodd/registry.d")
_DEFAULTS = Path(__file__).parents[1] / "data" / "registrymodifications.xcu"

_OOR = "http://openoffice.org/2001/registry"
_ITEMS, _PATH, _NAME, _PACKAGE = f"{{{_OOR}}}items", f"{{{_OOR}}}path", f"{{{_OOR}}}name", f"{{{_OOR}}}package"
_COMPONENT_DATA = f"{{{_OOR}}}component-data"
_NAMESPACES = {"oor": _OOR, "xsi": "http://www.w3.org/2001/XMLSchema-instance"}
# Values have this prefix (oor:type="xs:boolean"), and ElementTree looks at names only.
_OF_VALUES = {"xmlns:xs": "http://www.w3.org/2001/XMLSchema"}

# Where the package has ooodd's acceptor.
_ACCEPTOR = Path("/usr/lib") / (sysconfig.get_config_var("MULTIARCH") or "") / "ooodd"
# Where LibreOffice keeps what components a user's extensions have.
_COMPONENTS = "com.sun.star.comp.deployment.component.PackageRegistryBackend"

# "Start me again": how often an office may say so, and how long a start may take, in seconds.
_START_AGAIN = 81
_MOST_STARTS = 5
_START_LIMIT = 20.0
# Where dpkg has the lists of files of each package.
_DPKG_LISTS = Path("/var/lib/dpkg/info")

# A setting: the path of its node in the registry, and its name there.
Setting = tuple[str, str]


@dataclass(frozen=True)
class Installation:
    """An installed office, by its program directory."""

    program: Path

    @property
    def share(self) -> Path:
        """Its directory of shared files."""
        return self.program.parent / "share"

    def build(self) -> str:
        """Return the id of the build; empty if it has none."""
        try:
            lines = (self.program / "versionrc").read_text("utf-8", "replace").splitlines()
        except OSError:
            return ""
        return next((line.partition("=")[2].strip() for line in lines if line.startswith("buildid=")), "")

    def extensions(self) -> list[str]:
        """Return the names of the extensions that are installed for all users, bundled or added by unopkg."""
        bundled = [path.name for path in _entries(self.share / "extensions")]
        cache = self.share / "uno_packages" / "cache" / "uno_packages"
        added = [path.name for each in _entries(cache) if each.name.endswith(".tmp_") for path in _entries(each)]
        return sorted({name for name in bundled + added if not name.endswith("properties")})


def make_profile(target: Path, program: Path) -> str:
    """Make a profile at `target`, which must not exist, for the office in `program`. Return what is to be said of it.

    If the office does not register its extensions, the profile is good enough to try. Raises `StartError` if there is
    no profile at all, and then leaves nothing behind.
    """
    installation = Installation(program)
    names = ", ".join(installation.extensions())
    reports: list[str] = []
    user = target / "user"
    try:
        (user / "extensions").mkdir(parents=True)
        (user / "extensions" / "buildid").write_text(installation.build())
        (user / "registrymodifications.xcu").write_bytes(settings(installation))
        if names:
            how = _start_until_ready(target, program)
            reports.append(f"the office was started once more to register the extensions {names}: {how}")
        if (_ACCEPTOR / "libooodd-acceptor.so").exists():
            if fault := acceptor_fault(program):
                reports.append(f"the office can't load ooodd's acceptor, so sessions are forwarded: {fault}")
            else:
                _register_acceptor(target)
    except OSError as error:
        shutil.rmtree(target, ignore_errors=True)
        raise StartError(f"no profile at {target}: {error.strerror or error}", "make room there") from error
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise
    return "; ".join(reports)


def _start_until_ready(profile: Path, program: Path) -> str:
    """Have the office register its extensions, and return how it ended.

    It prints an empty document, and ends, or wants to be started again before that.
    """
    how = "no end"
    with tempfile.TemporaryDirectory(dir=profile) as directory:
        empty = Path(directory) / "empty.txt"
        empty.write_text("\n")
        command = [
            *(str(program / "soffice.bin"), "--headless", "--norestore", "--nologo", "--nodefault"),
            *(f"-env:UserInstallation={profile.as_uri()}", f"-env:OSL_SOCKET_PATH={directory}", "--cat", str(empty)),
        ]
        for _ in range(_MOST_STARTS):
            try:
                status = subprocess.run(
                    command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, timeout=_START_LIMIT, check=False
                ).returncode
            except subprocess.TimeoutExpired:
                how = f"no end within {_START_LIMIT:g} s"
                break
            how = "done" if status == 0 else f"exit status {status}" if status > 0 else f"signal {-status}"
            if status != _START_AGAIN:
                break
    for left in (".lock", "user/.lock"):
        (profile / left).unlink(missing_ok=True)
    return how


# The acceptor


def acceptor_fault(program: Path, library: Path = _ACCEPTOR / "libooodd-acceptor.so") -> str:
    """Return why an office can't load ooodd's acceptor; empty if it can. One that is told to use it and can't spins.

    The office of another make, Apache OpenOffice for example, lacks symbols.
    """
    load = "import ctypes, os, sys; ctypes.CDLL(sys.argv[1], os.RTLD_NOW)"
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", load, str(library)],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={"LD_LIBRARY_PATH": str(program)},
            timeout=_START_LIMIT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode == 0:
        return ""
    return done.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2] or f"status {done.returncode}"


def _register_acceptor(profile: Path) -> None:
    """Have offices with the profile know the acceptor, by a file in which LibreOffice keeps a user's components.

    For start-office there is a file that says so.
    """
    directory = profile / "user" / "uno_packages" / "cache" / "registry" / _COMPONENTS
    directory.mkdir(parents=True, exist_ok=True)
    # With the "?", an office starts also if the file is missing.
    (directory / "unorc").write_text(f"[Bootstrap]\nUNO_SERVICES=?{(_ACCEPTOR / 'acceptor.rdb').as_uri()}\n")
    (profile / "acceptor").touch()


# Settings


def settings(installation: Installation, site: Path = SITE_SETTINGS) -> bytes:
    """Return the settings of a new profile. A file of the site that can't be used is left out.

    `check_site_settings` says why.
    """
    taken = set(_settings_of_registry(installation.share / "registry"))
    items = [item for item in _items(_DEFAULTS) if taken.isdisjoint(_settings_of_item(item))]
    items += _language()
    for path in site_files(site):
        try:
            items += _items(path)
        except ConfigError:
            continue
    for prefix, uri in _NAMESPACES.items():
        ET.register_namespace(prefix, uri)
    root = Element(_ITEMS, _OF_VALUES)
    root.extend(items)
    text: bytes = ET.tostring(root, "utf-8", xml_declaration=True)
    return text


def _language() -> list[Element]:
    """Return the setting for the machine's language where no UTF-8 locale of it has been generated (data/locale.sh)."""
    wanted, found = os.environ.get("OOODD_LOCALE", ""), os.environ.get("LC_CTYPE", "")
    language = re.match(r"([a-z]{2,3})(?:_([A-Z]{2}))?(?=[.@]|$)", wanted)
    if language is None or found != "C.UTF-8":
        return []
    return [_item("/org.openoffice.Setup/L10N", "ooSetupSystemLocale", "-".join(filter(None, language.groups())))]


def _item(path: str, name: str, value: str) -> Element:
    item = Element("item", {_PATH: path})
    prop = ET.SubElement(item, "prop", {_NAME: name, f"{{{_OOR}}}op": "fuse"})
    ET.SubElement(prop, "value").text = value
    return item


def site_files(site: Path = SITE_SETTINGS) -> list[Path]:
    """Return the files with settings of the site, in the order in which they count; the last wins."""
    return [path for path in _entries(site) if path.suffix == ".xcu"]


def check_site_settings(site: Path = SITE_SETTINGS) -> list[Path]:
    """Return the files with settings of the site; `ConfigError` for the first that can't be used."""
    files = site_files(site)
    for path in files:
        _items(path)
    for path in _entries(site):
        if path.suffix != ".xcu":
            raise ConfigError(f"{path}", "only files whose names end in .xcu are read; rename it or move it away")
    return files


def _items(path: Path) -> list[Element]:
    """Return the items of a file in the format of registrymodifications.xcu, or raise `ConfigError`."""
    try:
        root = ET.parse(path).getroot()  # noqa: S314 - root has written it
    except ET.ParseError as error:
        raise ConfigError(f"{path}", f"not well-formed XML: {error}") from error
    except OSError as error:
        raise ConfigError(
            f"{path}", f"{error.strerror}; offices run as other users, so everybody must read it"
        ) from error
    if root.tag != _ITEMS:
        hint = "copy the <oor:items> line of a profile's registrymodifications.xcu"
        raise ConfigError(f"{path}", f"the root element must be oor:items of {_OOR}; {hint}")
    for number, item in enumerate(root, 1):
        place = f"item {number}"
        if item.tag != "item":
            raise ConfigError(f"{path}", f'{place}: must be an "item", not "{item.tag}"')
        if not item.get(_PATH, "").startswith("/"):
            raise ConfigError(f"{path}", f'{place}: needs oor:path="/..." with the path of a node')
        if not len(item):
            raise ConfigError(f"{path}", f"{place}: needs a prop or a node")
        for prop in item.iter():
            if prop.tag in ("prop", "node") and not prop.get(_NAME):
                raise ConfigError(f"{path}", f"{place}: a {prop.tag} needs oor:name")
    return list(root)


def _settings_of_item(item: Element) -> set[Setting]:
    # A member of a set may have its type in a path: org.openoffice.Office.Jobs:Job['UpdateCheck'].
    path = re.sub(r"[^/\[]*\['([^']*)'\]", r"\1", item.get(_PATH, ""))
    return {(path, prop.get(_NAME, "")) for prop in item.iter("prop")}


def _settings_of_registry(registry: Path) -> Iterator[Setting]:
    """Yield the settings that the site has added to LibreOffice's registry, in files that no package has."""
    files = [*registry.glob("*.xcd"), *registry.glob("data/**/*.xcu")]
    packaged = _packaged(registry) if files else set()
    for path in files:
        if str(path.resolve()) in packaged or str(path) in packaged or not packaged or _is_as_shipped(path, registry):
            continue
        try:
            root = ET.parse(path).getroot()  # noqa: S314 - root has written it
        except (ET.ParseError, OSError):  # LibreOffice will say so
            continue
        for component in root.iter(_COMPONENT_DATA):
            name = f"/{component.get(_PACKAGE, '')}.{component.get(_NAME, '')}"
            yield from _settings_below(component, name)


def _is_as_shipped(path: Path, registry: Path) -> bool:
    """Whether a file of a registry is what Debian's packages have copied there, from `.registry` beside it."""
    try:
        return filecmp.cmp(path, registry.parent / ".registry" / path.relative_to(registry), shallow=False)
    except OSError:
        return False


def _settings_below(node: Element, path: str) -> Iterator[Setting]:
    for child in node:
        name = child.get(_NAME, "")
        if child.tag == "prop":
            yield path, name
        elif child.tag == "node":
            yield from _settings_below(child, f"{path}/{name}")


def _packaged(registry: Path) -> set[str]:
    """Return the files of packages in a registry; none where there is no dpkg, or the office is not of a package."""
    names = (f"{registry}/", f"{registry.resolve()}/")
    found = set()
    # All packages: those of an office have many names (libreoffice-core, libobasis25.2-core, openoffice-core02).
    for path in _DPKG_LISTS.glob("*.list"):
        text = path.read_text("utf-8", "replace")
        if any(name in text for name in names):
            found |= {line for line in text.splitlines() if line.startswith(names)}
    return found


def _entries(directory: Path) -> list[Path]:
    """Return what is in a directory, by name; nothing if it can't be read."""
    try:
        return sorted(Path(entry.path) for entry in os.scandir(directory))
    except OSError:
        return []
