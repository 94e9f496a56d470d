/* What the preloaded libraries share: which files they look at. */
#ifndef KVD_WATCHED_H
#define KVD_WATCHED_H

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Whether a path lies under the directory that an environment variable names. */
static inline int lies_under(const char *variable, const char *path)
{
    const char *dir = getenv(variable);
    size_t len = dir ? strlen(dir) : 0;
    return len && strncmp(path, dir, len) == 0 && (path[len] == '/' || path[len] == 0);
}

/* The path of an open file, if it lies under that directory. */
static inline int open_under(const char *variable, int fd, char *path, size_t room)
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

/* What stands in the file that an environment variable names, without its end of line; 0 if there
 * is none. */
static inline int content_of(const char *variable, char *text, size_t room)
{
    const char *file = getenv(variable);
    ssize_t len;
    int fd = file ? open(file, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0)
        return 0;
    len = read(fd, text, room - 1);
    close(fd);
    if (len <= 0)
        return 0;
    text[len] = 0;
    text[strcspn(text, "\n")] = 0;
    return 1;
}

#endif
