/* What the preloaded libraries share: which files they look at. */
#ifndef KVD_WATCHED_H
#define KVD_WATCHED_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Whether a path lies under the directory that an environment variable names. */
static int lies_under(const char *variable, const char *path)
{
    const char *dir = getenv(variable);
    size_t len = dir ? strlen(dir) : 0;
    return len && strncmp(path, dir, len) == 0 && (path[len] == '/' || path[len] == 0);
}

/* The path of an open file, if it lies under that directory. */
static int open_under(const char *variable, int fd, char *path, size_t room)
{
    char link[64];
    ssize_t len;
    if (!getenv(variable))
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    len = readlink(link, path, room - 1);
    if (len <= 0)
        return 0;
    path[len] = 0;
    return lies_under(variable, path);
}

#endif
