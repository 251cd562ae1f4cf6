# SPDX-License-Identifier: LGPL-2.1-or-later
"""An extension with a service of its own, as a file for unopkg."""

import zipfile
from pathlib import Path

SERVICE = "org.example.ooodd.Hello"

_MANIFEST = """<?xml version="1.0" encoding="UTF-8"?>
<manifest:manifest xmlns:manifest="http://openoffice.org/2001/manifest">
 <manifest:file-entry manifest:full-path="hello.py"
  manifest:media-type="application/vnd.sun.star.uno-component;type=Python"/>
</manifest:manifest>
"""
_DESCRIPTION = """<?xml version="1.0" encoding="UTF-8"?>
<description xmlns="http://openoffice.org/extensions/description/2006">
 <identifier value="org.example.ooodd.hello"/><version value="1.0"/>
</description>
"""
_COMPONENT = f"""import unohelper
from com.sun.star.lang import XServiceInfo


class Hello(unohelper.Base, XServiceInfo):
    def __init__(self, context):
        pass

    def getImplementationName(self):
        return "{SERVICE}"

    def supportsService(self, name):
        return name == "{SERVICE}"

    def getSupportedServiceNames(self):
        return ("{SERVICE}",)


g_ImplementationHelper = unohelper.ImplementationHelper()
g_ImplementationHelper.addImplementation(Hello, "{SERVICE}", ("{SERVICE}",))
"""


def make(target: Path) -> Path:
    """Write the extension."""
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr("META-INF/manifest.xml", _MANIFEST)
        archive.writestr("description.xml", _DESCRIPTION)
        archive.writestr("hello.py", _COMPONENT)
    return target
