/* Counts the calls by which a process changes files below one directory, and ends everything at one of them.
 *
 * Loaded before the C library, so that it sees what Python, SQLite and tuf do alike: creating, writing, truncating,
 * syncing, renaming and removing. The state is one shared mapping: all processes of an agent count together. At the
 * point chosen the call is not made (or, if it writes and `torn` is set, half of it), and the agent and the process
 * that made the call are killed; the others die with the agent. The point is counted from the start, or from the last of the
 * calls that EDGEML_POINTS_SINCE names, in their order ("CALL PATH", one a line): how many calls come before those changes
 * from life to life. What it cannot see: pages written through a mapping
 * (SQLite's index of its log, which is rebuilt), and, unless it is told to, the files of telemetry.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

struct shared {
    _Atomic int64_t count;
    int64_t kill_at;
    int64_t torn;
    int64_t agent;
    _Atomic int64_t passed;
    _Atomic int64_t first;
};

static struct shared *shared;
static const char *root;
static size_t root_length;
static const char *marks;
static int log_descriptor = -1;
static int with_telemetry;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("EDGEML_POINTS");
    const char *told = getenv("EDGEML_POINTS_LOG");
    root = getenv("EDGEML_POINTS_ROOT");
    if (path == NULL || root == NULL || told == NULL) return;
    root_length = strlen(root);
    marks = getenv("EDGEML_POINTS_SINCE");
    with_telemetry = getenv("EDGEML_POINTS_TELEMETRY") != NULL;
    int descriptor = (int)syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC, 0);
    if (descriptor < 0) return;
    void *mapped = mmap(NULL, sizeof(struct shared), PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
    syscall(SYS_close, descriptor);
    if (mapped == MAP_FAILED) return;
    log_descriptor = (int)syscall(SYS_openat, AT_FDCWD, told, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    shared = mapped;
}

static int left_out(const char *path) {
    return !with_telemetry && strstr(path, "/telemetry.db") != NULL;
}

static void end_everything(void) {
    syscall(SYS_kill, (pid_t)shared->agent, SIGKILL);
    syscall(SYS_kill, (pid_t)syscall(SYS_getpid), SIGKILL);
    for (;;) syscall(SYS_pause);
}

/* Whether the point is counted, which it is from the last mark on. */
static int counted(const char *call, const char *name, int64_t mine) {
    const char *mark = marks;
    for (int64_t passed = atomic_load(&shared->passed); mark != NULL && passed > 0; passed--) {
        mark = strchr(mark, '\n');
        if (mark != NULL) mark++;
    }
    if (mark == NULL) return 1;
    /* A rename tells the old name, too. */
    size_t call_length = strlen(call), length = strcspn(name, " "), end = strcspn(mark, "\n");
    if (end != call_length + 1 + length || strncmp(mark, call, call_length) != 0 || mark[call_length] != ' ') return 0;
    if (strncmp(mark + call_length + 1, name, length) != 0) return 0;
    atomic_store(&shared->first, mine);
    atomic_fetch_add(&shared->passed, 1);
    return strchr(mark, '\n') == NULL;
}

/* Tells the log of a point: its number, the call, the file's size before it, the file (two, for a rename).
 * Returns 1 if the call is to be made by half and everything ended after it. */
static int point(const char *call, const char *path, int writes, int64_t size) {
    if (shared == NULL || strncmp(path, root, root_length) != 0 || (path[root_length] != '/' && path[root_length] != 0) || left_out(path)) return 0;
    int64_t mine = atomic_fetch_add(&shared->count, 1);
    char line[PATH_MAX * 2 + 64];
    const char *name = path[root_length] ? path + root_length + 1 : ".";
    int length = snprintf(line, sizeof line, "%lld %s %lld %s\n", (long long)mine, call, (long long)size, name);
    if (log_descriptor >= 0) syscall(SYS_write, log_descriptor, line, (size_t)length);
    if (!counted(call, name, mine) || mine - atomic_load(&shared->first) != shared->kill_at) return 0;
    if (writes && shared->torn) return 1;
    end_everything();
    return 0;
}

static int point_of(int descriptor, const char *call, int writes) {
    if (shared == NULL || descriptor < 0) return 0;
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = (ssize_t)syscall(SYS_readlinkat, AT_FDCWD, link, path, sizeof path - 1);
    if (length <= 0) return 0;
    path[length] = 0;
    struct stat seen;
    return point(call, path, writes, fstat(descriptor, &seen) == 0 ? (int64_t)seen.st_size : 0);
}

static int point_at(int directory, const char *name, const char *call) {
    if (shared == NULL) return 0;
    if (name[0] == '/' || directory == AT_FDCWD) {
        char whole[PATH_MAX * 3];
        if (name[0] == '/') return point(call, name, 0, 0);
        if (getcwd(whole, PATH_MAX) == NULL) return 0;
        strncat(whole, "/", sizeof whole - strlen(whole) - 1);
        strncat(whole, name, sizeof whole - strlen(whole) - 1);
        return point(call, whole, 0, 0);
    }
    return point_of(directory, call, 0);
}

#define REAL(type, name, ...) \
    static type (*real)(__VA_ARGS__); \
    if (real == NULL) real = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)

ssize_t write(int d, const void *data, size_t size) {
    REAL(ssize_t, write, int, const void *, size_t);
    if (point_of(d, "write", 1)) { real(d, data, size / 2); end_everything(); }
    return real(d, data, size);
}

#define PWRITE(name, offset_type) \
    ssize_t name(int d, const void *data, size_t size, offset_type at) { \
        REAL(ssize_t, name, int, const void *, size_t, offset_type); \
        if (point_of(d, "write", 1)) { real(d, data, size / 2, at); end_everything(); } \
        return real(d, data, size, at); \
    }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

ssize_t writev(int d, const struct iovec *parts, int count) {
    REAL(ssize_t, writev, int, const struct iovec *, int);
    if (point_of(d, "write", 1)) { real(d, parts, count / 2); end_everything(); }
    return real(d, parts, count);
}

#define BY_DESCRIPTOR(name) \
    int name(int d) { REAL(int, name, int); point_of(d, "sync", 0); return real(d); }
BY_DESCRIPTOR(fsync)
BY_DESCRIPTOR(fdatasync)

#define TRUNCATE(name, offset_type) \
    int name(int d, offset_type size) { \
        REAL(int, name, int, offset_type); point_of(d, "truncate", 0); return real(d, size); }
TRUNCATE(ftruncate, off_t)
TRUNCATE(ftruncate64, off64_t)

int rename(const char *from, const char *to) {
    REAL(int, rename, const char *, const char *);
    char both[PATH_MAX * 2];
    /* The old name is under the same root: only its last part is told. */
    const char *last = strrchr(from, '/');
    snprintf(both, sizeof both, "%s < %s", to, last ? last + 1 : from);
    point_at(AT_FDCWD, both, "rename");
    return real(from, to);
}
int renameat(int a, const char *from, int b, const char *to) {
    REAL(int, renameat, int, const char *, int, const char *);
    point_at(b, to, "rename");
    return real(a, from, b, to);
}
int unlink(const char *path) {
    REAL(int, unlink, const char *);
    point_at(AT_FDCWD, path, "remove");
    return real(path);
}
int unlinkat(int d, const char *path, int flags) {
    REAL(int, unlinkat, int, const char *, int);
    point_at(d, path, "remove");
    return real(d, path, flags);
}
int rmdir(const char *path) {
    REAL(int, rmdir, const char *);
    point_at(AT_FDCWD, path, "remove");
    return real(path);
}
int mkdir(const char *path, mode_t mode) {
    REAL(int, mkdir, const char *, mode_t);
    point_at(AT_FDCWD, path, "create");
    return real(path, mode);
}
int chmod(const char *path, mode_t mode) {
    REAL(int, chmod, const char *, mode_t);
    point_at(AT_FDCWD, path, "chmod");
    return real(path, mode);
}
int symlink(const char *to, const char *path) {
    REAL(int, symlink, const char *, const char *);
    point_at(AT_FDCWD, path, "create");
    return real(to, path);
}

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        REAL(int, name, const char *, int, ...); \
        mode_t mode = 0; \
        if (flags & O_CREAT) { \
            va_list rest; va_start(rest, flags); mode = va_arg(rest, mode_t); va_end(rest); \
            if (access(path, F_OK) != 0) point_at(AT_FDCWD, path, "create"); \
        } \
        if (flags & O_TRUNC && access(path, F_OK) == 0) point_at(AT_FDCWD, path, "truncate"); \
        return real(path, flags, mode); \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name) \
    int name(int d, const char *path, int flags, ...) { \
        REAL(int, name, int, const char *, int, ...); \
        mode_t mode = 0; \
        if (flags & O_CREAT) { \
            va_list rest; va_start(rest, flags); mode = va_arg(rest, mode_t); va_end(rest); \
            point_at(d, path, "create"); \
        } \
        return real(d, path, flags, mode); \
    }
OPENAT(openat)
OPENAT(openat64)
