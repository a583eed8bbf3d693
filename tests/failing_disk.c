/* A disk that is full, or fails to sync: for programs that are started with this library in LD_PRELOAD.
 *
 * FAILING_DISK names a file; the disk is the folder that it is in. Another process writes its three bytes at any time: whether
 * no file may become longer, and how many of the next syncs of write-ahead logs and of other files fail (255: all of them).
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static volatile unsigned char *faults; /* full, logs, files */
static char folder[PATH_MAX];

__attribute__((constructor)) static void find_disk(void)
{
    const char *name = getenv("FAILING_DISK");
    int file = name == NULL ? -1 : open(name, O_RDWR | O_CLOEXEC);
    if (file < 0)
        return;
    void *mapped = mmap(NULL, 3, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    snprintf(folder, sizeof folder, "%s", name);
    *strrchr(folder, '/') = '\0';
    if (mapped != MAP_FAILED)
        faults = mapped;
}

/* The path of an open file on that disk; NULL for others. */
static const char *path_of(int file, char *path)
{
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    if (length < 0)
        return NULL;
    path[length] = '\0';
    size_t above = strlen(folder);
    return strncmp(path, folder, above) == 0 && path[above] == '/' ? path : NULL;
}

static int has_no_room(int file, off_t end)
{
    char path[PATH_MAX];
    struct stat found;
    if (faults == NULL || !faults[0] || path_of(file, path) == NULL)
        return 0;
    return fstat(file, &found) == 0 && S_ISREG(found.st_mode) && end > found.st_size;
}

static int fails(int file)
{
    char path[PATH_MAX];
    if (faults == NULL || (!faults[1] && !faults[2]) || path_of(file, path) == NULL)
        return 0;
    size_t length = strlen(path);
    volatile unsigned char *left = &faults[length > 4 && strcmp(path + length - 4, "-wal") == 0 ? 1 : 2];
    if (*left == 0)
        return 0;
    if (*left != 255)
        --*left;
    return 1;
}

#define WRITES(name)                                                                     \
    ssize_t name(int file, const void *bytes, size_t count, off_t at)                    \
    {                                                                                    \
        ssize_t (*real)(int, const void *, size_t, off_t) = dlsym(RTLD_NEXT, #name);     \
        if (has_no_room(file, at + (off_t)count)) {                                      \
            errno = ENOSPC;                                                              \
            return -1;                                                                   \
        }                                                                                \
        return real(file, bytes, count, at);                                             \
    }

#define SYNCS(name)                                                                      \
    int name(int file)                                                                   \
    {                                                                                    \
        int (*real)(int) = dlsym(RTLD_NEXT, #name);                                      \
        if (fails(file)) {                                                               \
            errno = EIO;                                                                 \
            return -1;                                                                   \
        }                                                                                \
        return real(file);                                                               \
    }

WRITES(pwrite)
WRITES(pwrite64)
SYNCS(fdatasync)
SYNCS(fsync)
