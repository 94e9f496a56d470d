/*
 * Sets the wall clock of one process.
 *
 *   KVD_CLOCK a file with the number of milliseconds by which it is off; absent: it is right
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t clock, struct timespec *now)
{
    int (*real)(clockid_t, struct timespec *) =
        (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    const char *file = getenv("KVD_CLOCK");
    int result = real(clock, now), fd;
    char text[32];
    ssize_t len;
    long long off;
    if (result || clock != CLOCK_REALTIME || !file)
        return result;
    fd = open(file, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return 0;
    len = read(fd, text, sizeof text - 1);
    close(fd);
    if (len <= 0)
        return 0;
    text[len] = 0;
    off = atoll(text) * 1000000LL + now->tv_nsec;
    now->tv_sec += off / 1000000000LL;
    now->tv_nsec = off % 1000000000LL;
    if (now->tv_nsec < 0) {
        now->tv_nsec += 1000000000L;
        now->tv_sec -= 1;
    }
    return 0;
}
