/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * For /etc/ld.so.preload: refuse to mount another /proc, as the AppArmor profile of an unprivileged LXC container does.
 * systemd calls mount(2) for that, by libc.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <string.h>
#include <sys/mount.h>

typedef int mounter(const char *, const char *, const char *, unsigned long, const void *);

int mount(const char *source, const char *target, const char *type, unsigned long flags, const void *data)
{
    if (type && (strcmp(type, "proc") == 0 || strcmp(type, "sysfs") == 0)) {
        errno = EACCES;
        return -1;
    }
    return ((mounter *)dlsym(RTLD_NEXT, "mount"))(source, target, type, flags, data);
}
