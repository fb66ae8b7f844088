/* System calls that fail or are the process's last, on files below one directory: preloaded by torture_forks.py. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { OPEN, READ, WRITE, FSYNC, RENAME, UNLINK, MKDIR, CALLS };
enum { KILL_BEFORE = -1, KILL_AFTER = -2, SHORT = -3 }; /* else the number of an error; 0 counts alone */

static char below[4096];
static int wanted = -1, how;
static long at, count[CALLS];

void arm(const char *directory, int call, long number, int kind) {
    snprintf(below, sizeof below, "%s", directory);
    wanted = call, at = number, how = kind;
    memset(count, 0, sizeof count);
}

long counted(int call) { return count[call]; }

static int hit(int call, const char *path) {
    if (!*below || !path || strncmp(path, below, strlen(below))) return 0;
    if (++count[call] != at || call != wanted) return 0;
    if (how == KILL_BEFORE) kill(getpid(), SIGKILL);
    return how;
}

static const char *path_of(int descriptor) { /* of an open file */
    static char path[4096];
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    long size = syscall(SYS_readlink, link, path, sizeof path - 1);
    if (size < 0) return 0;
    path[size] = 0;
    return path;
}

#define FAULTY(type, name, call, path, parameters, arguments)                  \
    type name parameters {                                                     \
        type(*real) parameters = dlsym(RTLD_NEXT, #name);                      \
        int kind = hit(call, path);                                            \
        if (kind > 0) return errno = kind, -1;                                 \
        type result = real arguments;                                          \
        if (kind == KILL_AFTER) kill(getpid(), SIGKILL);                       \
        return result;                                                         \
    }
#define OPENING(name)                                                          \
    int name(const char *path, int flags, ...) {                               \
        va_list list;                                                          \
        va_start(list, flags);                                                 \
        int mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(list, int) : 0;      \
        va_end(list);                                                          \
        int (*real)(const char *, int, ...) = dlsym(RTLD_NEXT, #name);         \
        int kind = hit(OPEN, path);                                            \
        if (kind > 0) return errno = kind, -1;                                 \
        int result = real(path, flags, mode);                                  \
        if (kind == KILL_AFTER) kill(getpid(), SIGKILL);                       \
        return result;                                                         \
    }

OPENING(open)
OPENING(open64)
FAULTY(ssize_t, read, READ, path_of(file), (int file, void *to, size_t size), (file, to, size))
FAULTY(ssize_t, write, WRITE, path_of(file), (int file, const void *from, size_t size),
       (file, from, kind == SHORT ? (size + 1) / 2 : size))
FAULTY(int, fsync, FSYNC, path_of(file), (int file), (file))
FAULTY(int, rename, RENAME, old, (const char *old, const char *new), (old, new))
FAULTY(int, unlink, UNLINK, path, (const char *path), (path))
FAULTY(int, unlinkat, UNLINK, path_of(directory), (int directory, const char *path, int flags), (directory, path, flags))
FAULTY(int, mkdir, MKDIR, path, (const char *path, mode_t mode), (path, mode))
