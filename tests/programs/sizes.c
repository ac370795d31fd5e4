// Sizes, holes and limits.
#include "say.h"
#include <sys/resource.h>

static void answer(const char *what, long result) { printf("%s: %ld %s\n", what, result, result < 0 ? strerrorname_np(errno) : ""); }
static volatile sig_atomic_t caught;
static void on_signal(int signal) { caught = signal; }

int main(void) {
    char *bytes = pattern(200000, 2);
    int fd = MUST(open("f", O_RDWR | O_CREAT, 0644));
    SAY(write(fd, bytes, 200000));
    SAY(ftruncate(fd, 150000));
    SAY(truncate("f", 160000));
    SAY(ftruncate(fd, -1));
    SAY(truncate("none", 5));
    SAY(truncate(".", 5));
    SAY(symlink("f", "l"));
    SAY(truncate("l", 155555));
    SAY(syscall(SYS_ftruncate, fd, 154000));
    SAY(syscall(SYS_truncate, "./l", 153000));
    look("f");
    static const struct { const char *name; int mode; off_t offset, length; } calls[] = {
        {"allocate", 0, 100000, 100000}, {"keep size", 1, 300000, 50000}, {"punch", 3, 5000, 20000}, {"punch past the end", 3, 190000, 100000},
        {"zero", 0x10, 40000, 3000}, {"zero keep", 0x11, 199000, 9000}, {"zero grow", 0x10, 210000, 5000}, {"collapse", 8, 8192, 4096},
        {"insert", 0x20, 16384, 8192}, {"collapse odd", 8, 100, 4096}, {"collapse all", 8, 0, 1 << 20}, {"unshare", 0x40, 0, 4096},
        {"bad mode", 0x100, 0, 4096}, {"negative", 0, -1, 5}, {"nothing", 0, 0, 0},
    };
    for (unsigned i = 0; i < sizeof calls / sizeof *calls; i++) {
        answer(calls[i].name, fallocate(fd, calls[i].mode, calls[i].offset, calls[i].length));
        look("f");
    }
    SAY_NUMBER(posix_fallocate(fd, 10, 400000));
    SAY_NUMBER(posix_fallocate(-1, 0, 5));
    look("f");
    int read_only = open("f", O_RDONLY);
    SAY(ftruncate(read_only, 5));
    SAY(fallocate(read_only, 0, 0, 5));
    close(read_only);

    int sparse = open("sparse", O_RDWR | O_CREAT, 0644);
    SAY(pwrite(sparse, "island", 6, 50 << 20));
    SAY(ftruncate(sparse, 100 << 20));
    SAY(lseek(sparse, 0, SEEK_DATA) == lseek(sparse, 50 << 20, SEEK_DATA));
    SAY(pwrite(sparse, "far", 3, (off_t)1 << 33));
    SAY(ftruncate(sparse, 60 << 20));
    close(sparse);

    // A limit on the file size: short writes, EFBIG, and the signal.
    struct rlimit limit = {10000, RLIM_INFINITY};
    signal(SIGXFSZ, on_signal);
    int small = open("limited", O_RDWR | O_CREAT, 0644), append = open("limited", O_WRONLY | O_APPEND);
    setrlimit(RLIMIT_FSIZE, &limit);
    SAY(write(small, bytes, 9990));
    SAY(write(small, bytes, 100));
    SAY(write(small, bytes, 100));
    printf("signal %d\n", caught);
    caught = 0;
    SAY(pwrite(small, bytes, 5, 20000));
    SAY(write(append, "x", 1));
    SAY(ftruncate(small, 20000));
    SAY(fallocate(small, 0, 0, 20000));
    SAY(truncate("limited", 9000));
    struct iovec v[2] = {{bytes, 500}, {bytes, 600}};
    SAY(writev(append, v, 2));
    printf("signal %d\n", caught);
    signal(SIGXFSZ, SIG_IGN);
    SAY(write(append, "x", 1));
    look("limited");
    signal(SIGXFSZ, SIG_DFL);
    pid_t child = fork();
    if (child == 0) {
        write(append, "killed by SIGXFSZ", 17);
        _exit(0);
    }
    wait_for(child);
    limit.rlim_cur = RLIM_INFINITY;
    setrlimit(RLIMIT_FSIZE, &limit);
    SAY(write(append, "free again", 10));
    look("limited");

    // Calls that fail, after the kernel has set the file's time all the same. The pause lets the mirrors come to rest.
    int timed = open("timed", O_RDWR | O_CREAT, 0644);
    SAY(write(timed, "abc", 3));
    usleep(300000);
    SAY(fallocate(timed, FALLOC_FL_COLLAPSE_RANGE, 8192, 4096));
    return 0;
}
