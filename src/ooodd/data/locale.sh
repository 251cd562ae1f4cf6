# SPDX-License-Identifier: LGPL-2.1-or-later
#
# Read by start-office and prepare-profile, so that both have the same locale.
#
# An office writes and reads file names in the character set of LC_CTYPE. It has to be UTF-8, or it finds no file whose
# name has a letter beyond ASCII. LibreOffice takes its language and formats from the same variable. So the locale stays
# the machine's where that is UTF-8. Where it isn't, or has not been generated, OOODD_LOCALE tells make-profile the
# language.
OOODD_LOCALE=${LC_ALL:-${LC_CTYPE:-${LANG:-C}}}
unset LC_ALL
LC_CTYPE=C.UTF-8
for locale in "$OOODD_LOCALE" "${OOODD_LOCALE%%[.@]*}.UTF-8"; do
    case $OOODD_LOCALE in C | C.UTF-8 | POSIX) break ;; esac
    if [ "$(LC_ALL=$locale locale charmap 2>/dev/null)" = UTF-8 ]; then
        LC_CTYPE=$locale
        break
    fi
done
export LC_CTYPE OOODD_LOCALE
