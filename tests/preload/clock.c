/*
 * Sets the wall clock of one process.
 *
 *   KVD_CLOCK a file with the number of milliseconds by which it is off; absent: it is right
 */
#define _GNU_SOURCE
#include "watched.h"

#include <dlfcn.h>
#include <time.h>

int clock_gettime(clockid_t clock, struct timespec *now)
{
    int (*real)(clockid_t, struct timespec *) =
        (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(clock, now);
    char text[32];
    long long off;
    if (result || clock != CLOCK_REALTIME || !content_of("KVD_CLOCK", text, sizeof text))
        return result;
    off = atoll(text) * 1000000LL + now->tv_nsec;
    now->tv_sec += off / 1000000000LL;
    now->tv_nsec = off % 1000000000LL;
    if (now->tv_nsec < 0) {
        now->tv_nsec += 1000000000L;
        now->tv_sec -= 1;
    }
    return 0;
}
