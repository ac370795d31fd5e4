// Says what each call answered: the same lines must come bare and wrapped.
#ifndef SAY_H
#define SAY_H
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

// A call with its result, or the name of its error.
#define SAY(call)                                                                           \
    do {                                                                                    \
        errno = 0;                                                                          \
        long result_ = (long)(call);                                                        \
        printf("%s = %ld%s%s\n", #call, result_, result_ == -1 ? " " : "",                  \
               result_ == -1 ? strerrorname_np(errno) : "");                                \
        fflush(stdout);                                                                     \
    } while (0)

// The same for calls that answer an error number.
#define SAY_NUMBER(call)                                                                    \
    do {                                                                                    \
        int result_ = (call);                                                               \
        printf("%s = %s\n", #call, result_ ? strerrorname_np(result_) : "0");               \
        fflush(stdout);                                                                     \
    } while (0)

#define MUST(call)                                                                          \
    ({                                                                                      \
        long result_ = (long)(call);                                                        \
        if (result_ == -1) {                                                                \
            printf("%s failed: %s\n", #call, strerrorname_np(errno));                       \
            exit(9);                                                                        \
        }                                                                                   \
        result_;                                                                            \
    })

// Size, mode, links and a checksum of the content of what a name stands for.
static inline void look(const char *name) {
    struct stat st;
    if (lstat(name, &st) < 0) {
        printf("%s: %s\n", name, strerrorname_np(errno));
        return;
    }
    unsigned long sum = 5381;
    long count = 0;
    if (S_ISREG(st.st_mode)) {
        int fd = open(name, O_RDONLY);
        static unsigned char chunk[65536];
        ssize_t n;
        while (fd >= 0 && (n = read(fd, chunk, sizeof chunk)) > 0)
            for (ssize_t i = 0; i < n; i++, count++)
                sum = sum * 33 + chunk[i];
        if (fd >= 0)
            close(fd);
    }
    printf("%s: mode %o links %ld size %ld read %ld sum %lx\n", name, st.st_mode, S_ISDIR(st.st_mode) ? 0 : (long)st.st_nlink,
           S_ISREG(st.st_mode) ? (long)st.st_size : 0, count, sum);
    fflush(stdout);
}

// Bytes that tell where they belong.
static inline char *pattern(size_t size, unsigned seed) {
    char *bytes = malloc(size);
    for (size_t i = 0; i < size; i++)
        bytes[i] = (char)('a' + (i * 7 + seed * 13 + i / 251) % 26);
    return bytes;
}

static inline void wait_for(pid_t pid) {
    int status = 0;
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    printf("child: %s %d\n", WIFEXITED(status) ? "exit" : "signal", WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status));
    fflush(stdout);
}
#endif
