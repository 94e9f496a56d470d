/*
 * Kills the process, as SIGKILL does, at a chosen step of a snapshot's installation.
 *
 *   KVD_KILL_DIR   the directory whose files are watched
 *   KVD_KILL_TRACE a file that gets one line for each step, before the step is taken
 *   KVD_KILL_AT    the number of the step that is not taken any more; absent: none
 *
 * A step is a write, truncation, sync, rename or removal under the directory, but not in the Raft
 * log, which goes on with its own all the time. They are counted from the rename that completes a
 * received snapshot's file, which is step 0.
 */
#define _GNU_SOURCE
#include "watched.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/types.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static long steps = -1;

static int counts(const char *path)
{
    return lies_under("KVD_KILL_DIR", path) && !strstr(path, "/log/");
}

static void step(const char *name, const char *path, int begins)
{
    const char *trace = getenv("KVD_KILL_TRACE");
    const char *at = getenv("KVD_KILL_AT");
    char line[4200];
    int fd, len;
    pthread_mutex_lock(&lock);
    if (steps < 0 && !begins) {
        pthread_mutex_unlock(&lock);
        return;
    }
    steps++;
    len = snprintf(line, sizeof line, "%ld %s %s\n", steps, name, path);
    fd = trace ? open(trace, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600) : -1;
    if (fd >= 0) {
        ssize_t (*real)(int, const void *, size_t) =
            (ssize_t (*)(int, const void *, size_t))dlsym(RTLD_NEXT, "write");
        if (real(fd, line, (size_t)len) != len)
            abort();
        close(fd);
    }
    /* The lock is kept: no other thread takes a step of its own on the way down. */
    if (at && steps == atol(at))
        kill(getpid(), SIGKILL);
    pthread_mutex_unlock(&lock);
}

static void step_of(const char *name, int fd)
{
    char path[4096];
    if (steps >= 0 && open_under("KVD_KILL_DIR", fd, path, sizeof path) && counts(path))
        step(name, path, 0);
}

#define REAL(name, type) ((type)dlsym(RTLD_NEXT, name))

int fsync(int fd)
{
    step_of("sync", fd);
    return REAL("fsync", int (*)(int))(fd);
}

int fdatasync(int fd)
{
    step_of("sync", fd);
    return REAL("fdatasync", int (*)(int))(fd);
}

int ftruncate64(int fd, off64_t len)
{
    step_of("truncate", fd);
    return REAL("ftruncate64", int (*)(int, off64_t))(fd, len);
}

ssize_t write(int fd, const void *bytes, size_t len)
{
    step_of("write", fd);
    return REAL("write", ssize_t (*)(int, const void *, size_t))(fd, bytes, len);
}

ssize_t pwrite64(int fd, const void *bytes, size_t len, off64_t at)
{
    step_of("write", fd);
    return REAL("pwrite64", ssize_t (*)(int, const void *, size_t, off64_t))(fd, bytes, len, at);
}

int rename(const char *from, const char *to)
{
    if (counts(to))
        step("rename", to, strstr(from, "/in-") && strstr(to, ".snap"));
    return REAL("rename", int (*)(const char *, const char *))(from, to);
}

int unlink(const char *path)
{
    if (counts(path))
        step("remove", path, 0);
    return REAL("unlink", int (*)(const char *))(path);
}
