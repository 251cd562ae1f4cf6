# SPDX-License-Identifier: LGPL-2.1-or-later
"""Recorded data of real offices and clients of LibreOffice 7.4, block by block."""

# An office to two probes. TID stands for the thread id of the probe, which the office sends back.
TID = b"0123456789abcdef"
GREETING = (
    b"\0\0\0e\0\0\0\1\xf8\4\x96\0\0'com.sun.star.bridge.XProtocolProperties\x15UrpProtocolProperties\0\0"
    b"\x19.UrpProtocolPropertiesTid\0\0\x8a\xe0\xca\xd0"
)
COMMIT = b"\0\0\0\x12\0\0\0\1\5\1\x0eCurrentContext\0"
OPENING = [
    GREETING,
    COMMIT,
    b"\0\0\0h\0\0\0\1\x88\x10" + TID + b"\0\1\x96\0\1\x1bcom.sun.star.uno.XInterface"
    b"255dc4e4a2130;gcc3[0];9efc7bbecba40191964028e33dba8\0\1",
    b'\0\0\0*\0\0\0\1\x80\x96\0\2"com.sun.star.uno.XComponentContext\0\0\1',
    b"\0\0\x009\0\0\0\1\x80\x16\0\x01255dc4f167ab0;gcc3[0];9efc7bbecba40191964028e33dba8\0\2",
    b"\0\0\0#\0\0\0\1\x80\x96\0\3\x1bcom.sun.star.frame.XDesktop\0\0\2",
    b'\0\0\0*\0\0\0\1\x80\x96\0\4"com.sun.star.frame.XFramesSupplier\0\0\2',
]
NOTHING_OPEN = [
    *OPENING,
    b"\0\0\0\4\0\0\0\1\x80\0\xff\xff",
    b"\0\0\x006\0\0\0\1\x8027f10440018c0;gcc3[0];9efc7bbecba40191964028e33dba8\0\3",
    b"\0\0\x006\0\0\0\1\x80255dc4f121b20;gcc3[0];9efc7bbecba40191964028e33dba8\0\4",
    b"\0\0\0\5\0\0\0\1\x80\0\0\0\0",
    b"\0\0\0\2\0\0\0\1\x80\0",
]
HIDDEN_AND_VISIBLE = [
    *OPENING,
    b"\0\0\x006\0\0\0\1\x8027f105023b680;gcc3[0];9efc7bbecba40191964028e33dba8\0\3",
    b"\0\0\x006\0\0\0\1\x8027f105023ac90;gcc3[0];9efc7bbecba40191964028e33dba8\0\4",
    b"\0\0\x006\0\0\0\1\x80255dc4f121b20;gcc3[0];9efc7bbecba40191964028e33dba8\0\5",
    b"\0\0\0\5\0\0\0\1\x80\0\0\0\2",
    b"\0\0\0\2\0\0\0\1\x80\1",
    b"\0\0\x006\0\0\0\1\x8027f1044008660;gcc3[0];9efc7bbecba40191964028e33dba8\0\6",
    b"\0\0\0\2\0\0\0\1\x80\1",
    b"\0\0\0$\0\0\0\1\x80\x96\0\5\x1ccom.sun.star.lang.XComponent\0\0\3",
    b"\0\0\0\2\0\0\0\1\x80\1",
    b"\0\0\x009\0\0\0\1\x80\x16\0\x0527f1050005790;gcc3[0];9efc7bbecba40191964028e33dba8\0\7",
    b"\0\0\0\2\0\0\0\1\x80\0",
]

# The data of a client up to its first request. pyuno and C++ are the same library; their thread ids are random.
CLIENT_TID = b"\x14]J\0\0N\xd0\xaan\xf2\xc0E\x84\x9e\7\x18\xc9\xfd\x14\xea."
JAVA_TID = b"-java:7a81197d:1a2123b9224:-7fffffffffffffff:"
PYUNO = [
    (
        b"\0\0\0e\0\0\0\1\xf8\4\x96\0\0'com.sun.star.bridge.XProtocolProperties\x15UrpProtocolProperties\0\0"
        b"\x19.UrpProtocolPropertiesTid\0\0A/\xfb\xef"
    ),
    COMMIT,
    b"\0\0\0\x5c\0\0\0\1\xf8\0\x96\0\1\x1bcom.sun.star.uno.XInterface\x1bStarOffice.ComponentContext\0\1"
    + CLIENT_TID
    + b"\0\1\0\xff\xff\x16\0\1",
]
JAVA = [
    b"\0\0\0y\0\0\0\1\xf8\4\x96\0\0'com.sun.star.bridge.XProtocolProperties\x15UrpProtocolProperties\0\0"
    + JAVA_TID
    + b"0\0\0$\xd2c\xbc",
    COMMIT,
    b"\0\0\0u\0\0\0\1\xf8\0\x96\0\1\x1bcom.sun.star.uno.XInterface\x1bStarOffice.ComponentContext\0\1"
    + JAVA_TID
    + b"1\0\1\0\xff\xff\x16\0\1",
]
# An older library, which negotiates no protocol properties and so sends no context.
OLD = [b"\0\0\0\x59\0\0\0\1" + PYUNO[2][8:-6] + PYUNO[2][-3:]]
