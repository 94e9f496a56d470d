/*
 * Fails or delays what a node does with its files, as a disk with a bad place or a slow one does.
 *
 *   KVD_FAIL_DIR   the directory whose files are watched
 *   KVD_FAIL_ARMED a file; while it is there, what it names happens: one line with the name of the
 *                  operation, a space, and a part of the file's path. The operations:
 *                    sync, write, read  fail
 *                    sync-once          one sync fails, and the file is removed before it does
 *                    slow-MS            each sync takes so many milliseconds more
 */
#define _GNU_SOURCE
#include "watched.h"

#include <dlfcn.h>
#include <errno.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>

#define REAL(name, type) ((type)dlsym(RTLD_NEXT, name))

/* What is armed for this file: the operation's name, or nothing. */
static int armed(int fd, char *line, size_t room)
{
    char path[4096], *part;
    if (!open_under("KVD_FAIL_DIR", fd, path, sizeof path) ||
        !content_of("KVD_FAIL_ARMED", line, room))
        return 0;
    part = strchr(line, ' ');
    if (!part)
        return 0;
    *part++ = 0;
    return strstr(path, part) != NULL;
}

/* Whether the operation on this file is to fail now. */
static int fails(const char *operation, int fd)
{
    char line[256];
    if (!armed(fd, line, sizeof line) || strcmp(line, operation))
        return 0;
    errno = EIO;
    return 1;
}

/* The same for a sync, which may also be slow, or the one that fails. */
static int sync_fails(int fd)
{
    char line[256];
    struct timespec delay;
    long ms;
    if (!armed(fd, line, sizeof line))
        return 0;
    if (strncmp(line, "slow-", 5) == 0) {
        ms = atol(line + 5);
        delay.tv_sec = ms / 1000;
        delay.tv_nsec = ms % 1000 * 1000000L;
        nanosleep(&delay, NULL);
        return 0;
    }
    /* Of several that meet here the one that removes the file fails. */
    if (strcmp(line, "sync") && (strcmp(line, "sync-once") || unlink(getenv("KVD_FAIL_ARMED"))))
        return 0;
    errno = EIO;
    return 1;
}

int fsync(int fd)
{
    return sync_fails(fd) ? -1 : REAL("fsync", int (*)(int))(fd);
}

int fdatasync(int fd)
{
    return sync_fails(fd) ? -1 : REAL("fdatasync", int (*)(int))(fd);
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

ssize_t read(int fd, void *buf, size_t len)
{
    return fails("read", fd) ? -1 : REAL("read", ssize_t (*)(int, void *, size_t))(fd, buf, len);
}

ssize_t pread64(int fd, void *buf, size_t len, off64_t at)
{
    return fails("read", fd) ? -1 : REAL("pread64", ssize_t (*)(int, void *, size_t, off64_t))(fd, buf, len, at);
}
