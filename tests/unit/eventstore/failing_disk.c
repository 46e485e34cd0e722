/* A disk that fails while a file stands in the folder $FAILING_DISK: "fsync" for the write-ahead log's fsync,
   "write" for writes to the database itself. Loaded with LD_PRELOAD by test_failing_disk.py. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static int fails(int descriptor, const char *what, const char *suffix)
{
    char path[PATH_MAX], link[64];
    const char *folder = getenv("FAILING_DISK");
    if (folder == NULL || snprintf(path, sizeof path, "%s/%s", folder, what) >= (int)sizeof path)
        return 0;
    if (access(path, F_OK) != 0)
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < (ssize_t)strlen(suffix))
        return 0;
    path[length] = 0;
    return strcmp(path + length - strlen(suffix), suffix) == 0;
}

#define REAL(type, name, ...) ((type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name))
#define FAIL_IF(condition) if (condition) { errno = EIO; return -1; }

int fsync(int descriptor)
{
    FAIL_IF(fails(descriptor, "fsync", "log.db-wal"))
    return REAL(int, "fsync", int)(descriptor);
}

int fdatasync(int descriptor)
{
    FAIL_IF(fails(descriptor, "fsync", "log.db-wal"))
    return REAL(int, "fdatasync", int)(descriptor);
}

ssize_t pwrite(int descriptor, const void *bytes, size_t size, off_t offset)
{
    FAIL_IF(fails(descriptor, "write", "log.db"))
    return REAL(ssize_t, "pwrite", int, const void *, size_t, off_t)(descriptor, bytes, size, offset);
}

ssize_t pwrite64(int descriptor, const void *bytes, size_t size, off64_t offset)
{
    FAIL_IF(fails(descriptor, "write", "log.db"))
    return REAL(ssize_t, "pwrite64", int, const void *, size_t, off64_t)(descriptor, bytes, size, offset);
}
