// Calls reached by other ways than the program's own import of a name.
#include "say.h"
#include <dlfcn.h>

int main(void) {
    int fd = open("f", O_RDWR | O_CREAT, 0644);
    void *libc = dlopen("libc.so.6", RTLD_NOW | RTLD_NOLOAD);
    ssize_t (*handle_write)(int, const void *, size_t) = dlsym(libc, "write");
    SAY(handle_write(fd, "dlsym of the handle ", 20));
    ssize_t (*next_write)(int, const void *, size_t) = dlsym(RTLD_NEXT, "write");
    SAY(next_write(fd, "dlsym of the next ", 18));
    ssize_t (*default_write)(int, const void *, size_t) = dlsym(RTLD_DEFAULT, "write");
    SAY(default_write(fd, "dlsym of the default ", 21));
    ssize_t (*version_write)(int, const void *, size_t) = dlvsym(libc, "write", "GLIBC_2.2.5");
    SAY(version_write(fd, "dlvsym ", 7));
    ssize_t (*alias)(int, const void *, size_t) = dlsym(libc, "__write");
    if (alias)
        SAY(alias(fd, "alias ", 6));
    int (*rename_by_handle)(const char *, const char *) = dlsym(libc, "rename");
    int (*mkdir_by_handle)(const char *, mode_t) = dlsym(libc, "mkdir");
    SAY(mkdir_by_handle("made", 0755));
    SAY(rename_by_handle("made", "moved"));
    SAY(syscall(SYS_write, fd, "syscall ", 8));
    SAY(syscall(SYS_pwrite64, fd, "X", 1, 0));
    SAY(syscall(SYS_mkdirat, AT_FDCWD, "by-number", 0700));
    SAY(syscall(SYS_renameat2, AT_FDCWD, "by-number", AT_FDCWD, "by-number2", 0));
    SAY(syscall(SYS_fchmod, fd, 0604));
    SAY(syscall(SYS_dup3, fd, 33, 0));
    SAY(syscall(SYS_write, 33, "dup ", 4));
    SAY(syscall(SYS_close, 33));
    SAY(syscall(SYS_getpid) == getpid());
    SAY(syscall(99999));
    // A second C library with its own copy of everything.
    void *second = dlmopen(LM_ID_NEWLM, "libc.so.6", RTLD_NOW | RTLD_LOCAL);
    printf("dlmopen %d\n", second != 0);
    if (second) {
        int (*open2)(const char *, int, ...) = dlsym(second, "open");
        ssize_t (*write2)(int, const void *, size_t) = dlsym(second, "write");
        int (*close2)(int) = dlsym(second, "close");
        int (*rename2)(const char *, const char *) = dlsym(second, "rename");
        FILE *(*fopen2)(const char *, const char *) = dlsym(second, "fopen");
        int (*fputs2)(const char *, FILE *) = dlsym(second, "fputs");
        int (*fclose2)(FILE *) = dlsym(second, "fclose");
        int other = open2("second", O_WRONLY | O_CREAT, 0644);
        SAY(write2(other, "from the second library", 23));
        SAY(close2(other));
        SAY(rename2("second", "second2"));
        FILE *f = fopen2("stdio2", "w");
        SAY(fputs2("its stdio", f) >= 0);
        SAY(fclose2(f));
        SAY(write2(fd, "second ", 7));
    }
    // A library bound to itself first.
    void *deep = dlopen("libm.so.6", RTLD_NOW | RTLD_DEEPBIND);
    printf("deepbind %d\n", deep != 0);
    look("f");
    return 0;
}
