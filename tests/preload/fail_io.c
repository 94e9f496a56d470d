/*
 * Fails what a node does with its files, as a disk with a bad place does.
 *
 *   KVD_FAIL_DIR   the directory whose files are watched
 *   KVD_FAIL_ARMED a file; while it is there, what it names fails: one line with the name of the
 *                  operation (sync or write), a space, and a part of the file's path
 */
#define _GNU_SOURCE
#include "watched.h"

#include <dlfcn.h>
#include <errno.h>
#include <sys/types.h>
#include <sys/uio.h>

#define REAL(name, type) ((type)dlsym(RTLD_NEXT, name))

/* Whether the operation on this file is to fail now. */
static int fails(const char *operation, int fd)
{
    char path[4096], line[256], *part;
    if (!open_under("KVD_FAIL_DIR", fd, path, sizeof path) ||
        !content_of("KVD_FAIL_ARMED", line, sizeof line))
        return 0;
    part = strchr(line, ' ');
    if (!part)
        return 0;
    *part++ = 0;
    if (strcmp(line, operation) || !strstr(path, part))
        return 0;
    errno = EIO;
    return 1;
}

int fsync(int fd)
{
    return fails("sync", fd) ? -1 : REAL("fsync", int (*)(int))(fd);
}

int fdatasync(int fd)
{
    return fails("sync", fd) ? -1 : REAL("fdatasync", int (*)(int))(fd);
}

ssize_t write(int fd, const void *buf, size_t len)
{
    return fails("write", fd) ? -1 : REAL("write", ssize_t (*)(int, const void *, size_t))(fd, buf, len);
}

ssize_t writev(int fd, const struct iovec *iov, int count)
{
    return fails("write", fd) ? -1 : REAL("writev", ssize_t (*)(int, const struct iovec *, int))(fd, iov, count);
}

ssize_t pwrite64(int fd, const void *buf, size_t len, off64_t at)
{
    return fails("write", fd) ? -1 : REAL("pwrite64", ssize_t (*)(int, const void *, size_t, off64_t))(fd, buf, len, at);
}
