/*
 * Keeps what a disk would hold of the files under one directory if its power were lost now.
 *
 *   KVD_POWER_DIR   the directory that is watched
 *   KVD_POWER_KEPT  a folder for what is kept:
 *                     FILE            the contents of a file when its last completed sync began
 *                     FILE.names      the names in a directory then: a line "FILE NAME" for each
 *
 * Contents and names are copied before the sync begins and put in force, by a rename, before its
 * caller learns that it has ended: what comes while it runs may not be covered by it, and no
 * promise is older than its copy. Files are known by their inode and their time of birth, so that
 * renames are undone with the directory that they were made in, and a file is not taken for another
 * one that had its inode before.
 *
 * Only syncs through fsync and fdatasync are seen. An engine that writes through mapped memory or
 * io_uring would be wronged.
 */
#define _GNU_SOURCE
#include "watched.h"

#include <dirent.h>
#include <dlfcn.h>
#include <pthread.h>
#include <sys/stat.h>

/* A copy that is missing would look like lost data: better to end at once. */
static void must(int holds)
{
    if (!holds)
        abort();
}

/* What a file is known by; a path relative to a directory, or "" for that itself. */
static void identity(int dir, const char *path, char *text, size_t room)
{
    struct statx meta;
    int flags = AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW;
    must(statx(dir, path, flags, STATX_INO | STATX_BTIME, &meta) == 0);
    snprintf(text, room, "%llu-%lld-%u", (unsigned long long)meta.stx_ino,
             (long long)meta.stx_btime.tv_sec, meta.stx_btime.tv_nsec);
}

static void kept_path(char *path, size_t room, const char *file, const char *suffix)
{
    const char *kept = getenv("KVD_POWER_KEPT");
    must(kept != NULL);
    snprintf(path, room, "%s/%s%s", kept, file, suffix);
}

static void copy_file(const char *from, const char *to)
{
    static __thread char bytes[1 << 16];
    ssize_t len;
    int in = open(from, O_RDONLY | O_CLOEXEC);
    int out = open(to, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    must(in >= 0 && out >= 0);
    while ((len = read(in, bytes, sizeof bytes)) > 0)
        must(write(out, bytes, (size_t)len) == len);
    must(len == 0);
    close(in);
    close(out);
}

static void write_text(const char *to, const char *text)
{
    FILE *out = fopen(to, "we");
    must(out && fputs(text, out) >= 0);
    must(fclose(out) == 0);
}

static void copy_names(const char *from, const char *to)
{
    DIR *dir = opendir(from);
    FILE *out = fopen(to, "we");
    struct dirent *entry;
    char file[96];
    must(dir && out);
    while ((entry = readdir(dir)))
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
        {
            /* It may be gone by now, and was there when the sync was asked for: either is right. */
            if (faccessat(dirfd(dir), entry->d_name, F_OK, 0) != 0)
                continue;
            identity(dirfd(dir), entry->d_name, file, sizeof file);
            fprintf(out, "%s %s\n", file, entry->d_name);
        }
    closedir(dir);
    must(fclose(out) == 0);
}

static pthread_mutex_t one_at_a_time = PTHREAD_MUTEX_INITIALIZER;

static int synced(int fd, const char *name)
{
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
    char path[4096], next[4096], kept[4096], named[4096], file[96];
    struct stat meta;
    int result;
    if (!open_under("KVD_POWER_DIR", fd, path, sizeof path) || fstat(fd, &meta) != 0)
        return real(fd);
    /* One at a time: a copy that was begun earlier must not replace one that was begun later. */
    pthread_mutex_lock(&one_at_a_time);
    identity(fd, "", file, sizeof file);
    kept_path(next, sizeof next, file, ".next");
    kept_path(kept, sizeof kept, file, S_ISDIR(meta.st_mode) ? ".names" : "");
    if (S_ISDIR(meta.st_mode))
        copy_names(path, next);
    else {
        kept_path(named, sizeof named, file, ".path");
        if (access(named, F_OK) != 0)
            write_text(named, path);
        /* Also of a file that has no name any more. */
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        copy_file(path, next);
    }
    result = real(fd);
    if (result == 0)
        must(rename(next, kept) == 0);
    else
        unlink(next);
    pthread_mutex_unlock(&one_at_a_time);
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
