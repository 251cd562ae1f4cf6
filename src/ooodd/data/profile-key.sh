# SPDX-License-Identifier: LGPL-2.1-or-later
#
# Read by start-office and prepare-profile.

# profile_key PROGRAM: print a name for all that a profile of the office in PROGRAM depends on: the build, the extensions
# and settings that are installed, Java, ooodd's acceptor, and the locale. It changes whenever one of these may have changed.
profile_key() {
    {
        echo "4 $1 ${LC_CTYPE-} ${OOODD_LOCALE-} ${LANGUAGE-}"
        set -- "$1" "${1%/*}/share"
        find -L "$1/versionrc" "$1/soffice.bin" "$2/registry" "$2/extensions" "$2/uno_packages/cache/uno_packages" \
            "$2/prereg" /etc/libreoffice /etc/ooodd/registry.d "${0%/*}" /usr/lib/*/ooodd /usr/lib/jvm \
            /etc/alternatives/java \
            -maxdepth 2 -printf '%p %i %s %C@\n' 2>/dev/null || true
    } | md5sum | { read -r sum _ && echo "$sum"; }
}
