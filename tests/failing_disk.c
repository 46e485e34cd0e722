/* A disk that fails by rules. Loaded with LD_PRELOAD; the folder $FAILING_DISK is how a test talks to it:

   rules    a line each: ID CALL ERRNO WHEN SKIP TIMES PATTERN. The call on a path that matches the pattern fails
            TIMES times (-1: for as long as the rule stands) after SKIP that do not. WHEN is before (nothing is
            done), after (it is done, and reported as failed) or half (a write that breaks off in the middle).
            An ID is used once, so that counting begins with each rule.
   hits     every call that was made to fail: CALL PATH.
   journal  if it is there, what became of log.db and log.db-wal: W OFFSET SIZE PATH and the bytes written,
            T SIZE PATH, S PATH for an fsync, F PATH for one that failed.

   Calls: write, fsync, truncate, rename, create (an open that may create), open, mkdir, unlink. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#define RULES_MAX 64
#define REAL(type, name, ...) ((type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name))

enum when { NEVER, BEFORE, AFTER, HALF };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct { unsigned long id; long seen; } counts[RULES_MAX];

/* The folder's file, opened without any of the functions below; -1 if it is not there. */
static int open_control(const char *name, int flags)
{
    char path[PATH_MAX];
    const char *folder = getenv("FAILING_DISK");
    if (folder == NULL || snprintf(path, sizeof path, "%s/%s", folder, name) >= (int)sizeof path)
        return -1;
    return (int)syscall(SYS_openat, AT_FDCWD, path, flags | O_CLOEXEC, 0644);
}

/* One writev to a file opened for appending: no two records mix. */
static void append(const char *name, int flags, const char *line, const void *bytes, size_t size)
{
    int kept = errno, file = open_control(name, O_WRONLY | O_APPEND | flags);
    if (file >= 0) {
        struct iovec parts[] = {{(void *)line, strlen(line)}, {(void *)bytes, size}};
        if (syscall(SYS_writev, file, parts, 2) < 0)
            abort();
        syscall(SYS_close, file);
    }
    errno = kept;
}

static long count(unsigned long id)
{
    for (int i = 0; i < RULES_MAX; i++)
        if (counts[i].id == id || counts[i].id == 0) {
            counts[i].id = id;
            return counts[i].seen++;
        }
    memset(counts, 0, sizeof counts);
    return count(id);
}

/* Whether a call on a path fails; errno is set if so. */
static enum when judge(const char *call, const char *path)
{
    int kept = errno, file = open_control("rules", O_RDONLY);
    if (file < 0) {
        errno = kept;
        return NEVER;
    }
    char rules[8192], *rest = rules, *line, line_of_hits[PATH_MAX + 32];
    ssize_t size = syscall(SYS_read, file, rules, sizeof rules - 1);
    syscall(SYS_close, file);
    rules[size < 0 ? 0 : size] = 0;
    errno = kept;
    while ((line = strsep(&rest, "\n")) != NULL) {
        unsigned long id;
        char name[16], when[16], pattern[1024];
        int number;
        long skip, times;
        if (sscanf(line, "%lu %15s %d %15s %ld %ld %1023s", &id, name, &number, when, &skip, &times, pattern) != 7
            || strcmp(name, call) != 0 || fnmatch(pattern, path, 0) != 0)
            continue;
        pthread_mutex_lock(&lock);
        long before = count(id);
        pthread_mutex_unlock(&lock);
        if (before < skip || (times >= 0 && before >= skip + times))
            continue;
        snprintf(line_of_hits, sizeof line_of_hits, "%s %s\n", call, path);
        append("hits", O_CREAT, line_of_hits, NULL, 0);
        errno = number;
        return when[0] == 'h' ? HALF : when[0] == 'a' ? AFTER : BEFORE;
    }
    return NEVER;
}

/* The path of a descriptor; 0 for one that is no file. */
static int path_of(int descriptor, char *path)
{
    char link[64];
    int kept = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    errno = kept;
    path[length < 0 ? 0 : length] = 0;
    return path[0] == '/';
}

static int path_at(int folder, const char *name, char *path)
{
    if (name[0] == '/')
        return snprintf(path, PATH_MAX, "%s", name) < PATH_MAX;
    if (folder == AT_FDCWD || !path_of(folder, path))
        return 0;
    size_t length = strlen(path);
    return snprintf(path + length, PATH_MAX - length, "/%s", name) < (int)(PATH_MAX - length);
}

static int is_followed(const char *path)
{
    return fnmatch("*/log.db", path, 0) == 0 || fnmatch("*/log.db-wal", path, 0) == 0;
}

static void follow(const char *format, const char *path, const void *bytes, size_t size, ...)
{
    char line[PATH_MAX + 64];
    va_list numbers;
    if (!is_followed(path))
        return;
    va_start(numbers, size);
    int length = vsnprintf(line, 64, format, numbers);
    va_end(numbers);
    snprintf(line + length, sizeof line - (size_t)length, " %s\n", path);
    append("journal", 0, line, bytes, size);
}

/* A write of any kind: `run` does it, at `offset`, with so many bytes. */
#define WRITE(descriptor, bytes, size, offset, run) \
    char path[PATH_MAX]; \
    if (!path_of(descriptor, path)) \
        return run(size); \
    enum when when = judge("write", path); \
    int error = errno; \
    if (when == BEFORE) \
        return -1; \
    ssize_t written = run(when == HALF ? (size) / 2 : (size)); \
    if (written > 0) \
        follow("W %lld %zd", path, bytes, (size_t)written, (long long)(offset), written); \
    if (when == NEVER) \
        return written; \
    errno = error; \
    return -1;

ssize_t write(int descriptor, const void *bytes, size_t size)
{
#define RUN(count) REAL(ssize_t, "write", int, const void *, size_t)(descriptor, bytes, count)
    WRITE(descriptor, bytes, size, lseek(descriptor, 0, SEEK_CUR) - written, RUN)
#undef RUN
}

ssize_t pwrite(int descriptor, const void *bytes, size_t size, off_t offset)
{
#define RUN(count) REAL(ssize_t, "pwrite", int, const void *, size_t, off_t)(descriptor, bytes, count, offset)
    WRITE(descriptor, bytes, size, offset, RUN)
#undef RUN
}

ssize_t pwrite64(int descriptor, const void *bytes, size_t size, off64_t offset)
{
#define RUN(count) REAL(ssize_t, "pwrite64", int, const void *, size_t, off64_t)(descriptor, bytes, count, offset)
    WRITE(descriptor, bytes, size, offset, RUN)
#undef RUN
}

/* Anything else: done unless it fails before. */
#define CALL(call, known, run) \
    char path[PATH_MAX]; \
    enum when when = (known) ? judge(call, path) : NEVER; \
    int error = errno; \
    if (when == BEFORE) \
        return -1; \
    int result = run; \
    if (when != NEVER) { \
        errno = error; \
        return -1; \
    } \
    return result;

static int synced(int descriptor, const char *name)
{
    char path[PATH_MAX];
    int is_file = path_of(descriptor, path);
    enum when when = is_file ? judge("fsync", path) : NEVER;
    int error = errno, result = when == BEFORE ? -1 : REAL(int, name, int)(descriptor);
    if (is_file)
        follow(result == 0 ? "S" : "F", path, NULL, 0);
    if (when == NEVER)
        return result;
    errno = error;
    return -1;
}

int fsync(int descriptor) { return synced(descriptor, "fsync"); }
int fdatasync(int descriptor) { return synced(descriptor, "fdatasync"); }

static int truncated(int descriptor, off64_t size)
{
    int result = REAL(int, "ftruncate64", int, off64_t)(descriptor, size);
    char path[PATH_MAX];
    if (result == 0 && path_of(descriptor, path))
        follow("T %lld", path, NULL, 0, (long long)size);
    return result;
}

int ftruncate(int descriptor, off_t size)
{
    CALL("truncate", path_of(descriptor, path), truncated(descriptor, size))
}

int ftruncate64(int descriptor, off64_t size)
{
    CALL("truncate", path_of(descriptor, path), truncated(descriptor, size))
}

/* Its old path is the one that rules name. */
int rename(const char *from, const char *to)
{
    CALL("rename", path_at(AT_FDCWD, from, path), REAL(int, "rename", const char *, const char *)(from, to))
}

int renameat(int from_folder, const char *from, int to_folder, const char *to)
{
    CALL("rename", path_at(from_folder, from, path),
         REAL(int, "renameat", int, const char *, int, const char *)(from_folder, from, to_folder, to))
}

int mkdirat(int folder, const char *name, mode_t mode)
{
    CALL("mkdir", path_at(folder, name, path), REAL(int, "mkdirat", int, const char *, mode_t)(folder, name, mode))
}

int unlinkat(int folder, const char *name, int flags)
{
    CALL("unlink", path_at(folder, name, path), REAL(int, "unlinkat", int, const char *, int)(folder, name, flags))
}

static int opened(int folder, const char *name, int flags, mode_t mode)
{
    return REAL(int, "openat64", int, const char *, int, mode_t)(folder, name, flags, mode);
}

#define OPEN(folder, name, flags) \
    mode_t mode = 0; \
    va_list more; \
    va_start(more, flags); \
    if ((flags) & (O_CREAT | O_TMPFILE)) \
        mode = va_arg(more, mode_t); \
    va_end(more); \
    CALL((flags) & O_CREAT ? "create" : "open", path_at(folder, name, path), opened(folder, name, flags, mode))

int open(const char *name, int flags, ...) { OPEN(AT_FDCWD, name, flags) }
int open64(const char *name, int flags, ...) { OPEN(AT_FDCWD, name, flags) }
int openat(int folder, const char *name, int flags, ...) { OPEN(folder, name, flags) }
int openat64(int folder, const char *name, int flags, ...) { OPEN(folder, name, flags) }
