/* Refuses the n-th call that changes something below a folder: TSPACE_REFUSE=ENOSPC:7:/folder. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static int passed;

static int refused(const char *call, const char *path) {
    const char *wanted = getenv("TSPACE_REFUSE");
    char error[16];
    int number, skip = 0;
    if (!wanted || sscanf(wanted, "%15[A-Z]:%d:%n", error, &number, &skip) != 2 || !skip) return 0;
    if (strncmp(path, wanted + skip, strlen(wanted + skip))) return 0;
    if (__atomic_add_fetch(&passed, 1, __ATOMIC_SEQ_CST) != number) return 0;
    const char *name = strrchr(path, '/');
    dprintf(2, "fault: %s at %s %s\n", error, call, name ? name + 1 : path);
    errno = !strcmp(error, "ENOSPC") ? ENOSPC : !strcmp(error, "EROFS") ? EROFS : EIO;
    return 1;
}

static int refused_file(const char *call, int file) {
    char link[32], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t size = readlink(link, path, sizeof path - 1);
    if (size < 0) return 0;
    path[size] = 0;
    return refused(call, path);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define CALL(result, name, parameters, arguments, check) \
    result name parameters { return check ? -1 : REAL(name) arguments; }

CALL(ssize_t, write, (int f, const void *b, size_t n), (f, b, n), refused_file("write", f))
CALL(ssize_t, pwrite64, (int f, const void *b, size_t n, off64_t o), (f, b, n, o), refused_file("write", f))
CALL(ssize_t, writev, (int f, const struct iovec *v, int n), (f, v, n), refused_file("write", f))
CALL(int, fsync, (int f), (f), refused_file("fsync", f))
CALL(int, ftruncate64, (int f, off64_t n), (f, n), refused_file("truncate", f))
CALL(int, rename, (const char *a, const char *b), (a, b), refused("rename", b))
CALL(int, link, (const char *a, const char *b), (a, b), refused("link", b))
CALL(int, mkdir, (const char *p, mode_t m), (p, m), refused("mkdir", p))
CALL(int, unlink, (const char *p), (p), refused("unlink", p))
CALL(int, utimensat, (int d, const char *p, const struct timespec t[2], int f), (d, p, t, f), p && refused("utime", p))

int posix_fallocate64(int f, off64_t o, off64_t n) {
    return refused_file("allocate", f) ? errno : REAL(posix_fallocate64)(f, o, n);
}

#define OPEN(name) \
    int name(const char *p, int flags, ...) { \
        va_list more; va_start(more, flags); mode_t mode = va_arg(more, mode_t); va_end(more); \
        if ((flags & O_ACCMODE) != O_RDONLY && refused("open", p)) return -1; \
        return REAL(name)(p, flags, mode); }
OPEN(open)
OPEN(open64)

FILE *fopen64(const char *p, const char *mode) {
    return strpbrk(mode, "wa+") && refused("open", p) ? NULL : REAL(fopen64)(p, mode);
}
FILE *fopen(const char *p, const char *mode) {
    return strpbrk(mode, "wa+") && refused("open", p) ? NULL : REAL(fopen)(p, mode);
}
