/*
 * Notes what a loss of power would leave of the files under one directory.
 *
 *   KVD_POWER_DIR   the directory that is watched
 *   KVD_POWER_NOTES a file that gets one line for each event:
 *                     S LENGTH USED PATH
 *                                     the file was synced when it had this length, and nothing but
 *                                     zeros behind the first USED bytes
 *                     N PATH          this name was there when its directory was synced
 *   KVD_POWER_LIE   if set, a sync reports success, is not carried out and is not noted
 *
 * Lengths, ends and names are read before the sync begins: what comes while it runs may not be covered.
 * A line is written, by one append, before the caller learns that its sync has ended, so no
 * acknowledgement can be older than its note. The notes live in the page cache, which survives
 * SIGKILL; nothing here needs the real disk to lose anything.
 *
 * Only syncs of whole files and directories are noted. A file that is overwritten in place, as
 * storage engines do, is not described by a length; see the test for what it does with those.
 */
#define _GNU_SOURCE
#include "watched.h"

#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>

static void note(const char *line)
{
    const char *notes = getenv("KVD_POWER_NOTES");
    size_t len = strlen(line);
    int fd;
    if (!notes || len == 0)
        return;
    fd = open(notes, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    /* A note that is missing would look like lost data: better to end at once. */
    if (fd < 0 || write(fd, line, len) != (ssize_t)len)
        abort();
    close(fd);
}

/* The notes of a directory's names, to be written when its sync has ended. */
static char *names(const char *path)
{
    DIR *dir = opendir(path);
    struct dirent *entry;
    char *text = NULL;
    size_t len = 0;
    FILE *out = open_memstream(&text, &len);
    /* One that was removed since it was opened has no names. */
    if (!out || (!dir && errno != ENOENT))
        abort();
    if (!dir) {
        fclose(out);
        return text;
    }
    while ((entry = readdir(dir)))
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            fprintf(out, "N %s/%s\n", path, entry->d_name);
    closedir(dir);
    fclose(out);
    return text;
}

/* Up to where there is anything but zeros; the length, where that cannot be read. */
static long long used(int fd, long long length)
{
    static __thread char bytes[1 << 16];
    while (length > 0) {
        size_t part = length < (long long)sizeof bytes ? (size_t)length : sizeof bytes;
        if (pread(fd, bytes, part, length - (long long)part) != (ssize_t)part)
            return length;
        while (part > 0 && bytes[part - 1] == 0) {
            part--;
            length--;
        }
        if (part > 0)
            break;
    }
    return length;
}

static int synced(int fd, const char *name)
{
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
    char path[4096], *line = NULL;
    struct stat before;
    int result;
    if (!open_under("KVD_POWER_DIR", fd, path, sizeof path) || fstat(fd, &before) != 0)
        return real(fd);
    if (getenv("KVD_POWER_LIE"))
        return 0;
    if (S_ISDIR(before.st_mode))
        line = names(path);
    else if (asprintf(&line, "S %lld %lld %s\n", (long long)before.st_size,
                      used(fd, before.st_size), path) < 0)
        abort();
    result = real(fd);
    if (result == 0)
        note(line);
    free(line);
    return result;
}

int fsync(int fd)
{
    return synced(fd, "fsync");
}

int fdatasync(int fd)
{
    return synced(fd, "fdatasync");
}
