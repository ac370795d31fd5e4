// One call a directory, which `prepare` makes: through libc (`seen`) or by an own instruction that no library can see (`unseen`).
// What is unseen must show as a difference of the mirrors, or else the comparison proves nothing.
#include "say.h"
#include <linux/fs.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/xattr.h>

static long direct(long number, long a, long b, long c, long d, long e, long f) {
    register long r10 __asm__("r10") = d, r8 __asm__("r8") = e, r9 __asm__("r9") = f;
    long result;
    __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9) : "rcx", "r11", "memory");
    if (result < 0 && result > -4096) {
        errno = -result;
        return -1;
    }
    return result;
}

static int unseen;
#define PICK(_1, _2, _3, _4, _5, _6, n, ...) n
#define D1(n, a) direct(n, (long)(a), 0, 0, 0, 0, 0)
#define D2(n, a, b) direct(n, (long)(a), (long)(b), 0, 0, 0, 0)
#define D3(n, a, b, c) direct(n, (long)(a), (long)(b), (long)(c), 0, 0, 0)
#define D4(n, a, b, c, d) direct(n, (long)(a), (long)(b), (long)(c), (long)(d), 0, 0)
#define D5(n, a, b, c, d, e) direct(n, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), 0)
#define D6(n, a, b, c, d, e, f) direct(n, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))
#define DIRECT(n, ...) PICK(__VA_ARGS__, D6, D5, D4, D3, D2, D1)(n, __VA_ARGS__)
#define CALL(name, ...) (unseen ? DIRECT(SYS_##name, __VA_ARGS__) : (long)name(__VA_ARGS__))

static int fd;
static long act(const char *what) {
    struct iovec v[2] = {{"vec", 3}, {"tor", 3}};
    struct timespec ts[2] = {{5, 6}, {7, 8}};
    loff_t from = 0, to = 1000;
#define IS(name) (!strcmp(what, #name))
    if (IS(write)) return CALL(write, fd, "unseen", 6);
    if (IS(pwrite64)) return CALL(pwrite64, fd, "unseen", 6, 3);
    if (IS(writev)) return CALL(writev, fd, v, 2);
    if (IS(pwritev)) return unseen ? D5(SYS_pwritev, fd, v, 2, 5, 0) : pwritev(fd, v, 2, 5);
    if (IS(pwritev2)) return unseen ? D6(SYS_pwritev2, fd, v, 2, 5, 0, 0) : pwritev2(fd, v, 2, 5, 0);
    if (IS(openat)) return CALL(openat, AT_FDCWD, "created", O_WRONLY | O_CREAT, 0644);
    if (IS(open)) return CALL(open, "file", O_WRONLY | O_TRUNC);
    if (IS(creat)) return CALL(creat, "created", 0644);
    if (IS(rename)) return CALL(rename, "file", "renamed");
    if (IS(renameat)) return CALL(renameat, AT_FDCWD, "file", AT_FDCWD, "renamed");
    if (IS(renameat2)) return CALL(renameat2, AT_FDCWD, "file", AT_FDCWD, "other", RENAME_EXCHANGE);
    if (IS(unlink)) return CALL(unlink, "file");
    if (IS(unlinkat)) return CALL(unlinkat, AT_FDCWD, "file", 0);
    if (IS(rmdir)) return CALL(rmdir, "dir");
    if (IS(mkdir)) return CALL(mkdir, "new", 0755);
    if (IS(mkdirat)) return CALL(mkdirat, AT_FDCWD, "new", 0755);
    if (IS(link)) return CALL(link, "file", "linked");
    if (IS(linkat)) return CALL(linkat, AT_FDCWD, "file", AT_FDCWD, "linked", 0);
    if (IS(symlink)) return CALL(symlink, "file", "soft");
    if (IS(symlinkat)) return CALL(symlinkat, "file", AT_FDCWD, "soft");
    if (IS(mknod)) return CALL(mknod, "fifo", S_IFIFO | 0644, 0);
    if (IS(mknodat)) return CALL(mknodat, AT_FDCWD, "fifo", S_IFIFO | 0644, 0);
    if (IS(bind)) {
        struct sockaddr_un name = {.sun_family = AF_UNIX, .sun_path = "socket"};
        return CALL(bind, socket(AF_UNIX, SOCK_STREAM, 0), (struct sockaddr *)&name, sizeof name);
    }
    if (IS(truncate)) return CALL(truncate, "file", 3);
    if (IS(ftruncate)) return CALL(ftruncate, fd, 7000);
    if (IS(fallocate)) return CALL(fallocate, fd, 0, 0, 9000);
    if (IS(chmod)) return CALL(chmod, "file", 0600);
    if (IS(fchmod)) return CALL(fchmod, fd, 0600);
    if (IS(fchmodat)) return unseen ? D3(SYS_fchmodat, AT_FDCWD, "file", 0600) : fchmodat(AT_FDCWD, "file", 0600, 0);
    if (IS(setxattr)) return CALL(setxattr, "file", "user.k", "v", 1, 0);
    if (IS(lsetxattr)) return CALL(lsetxattr, "file", "user.k", "v", 1, 0);
    if (IS(fsetxattr)) return CALL(fsetxattr, fd, "user.k", "v", 1, 0);
    if (IS(removexattr)) return CALL(removexattr, "file", "user.old");
    if (IS(fremovexattr)) return CALL(fremovexattr, fd, "user.old");
    if (IS(utimensat)) return CALL(utimensat, AT_FDCWD, "file", ts, 0);
    if (IS(futimens)) return unseen ? D4(SYS_utimensat, fd, 0, ts, 0) : futimens(fd, ts);
    if (IS(copy_file_range)) return CALL(copy_file_range, fd, &from, fd, &to, 5, 0);
    if (IS(sendfile)) return CALL(sendfile, fd, open("other", O_RDONLY), 0, 4);
    if (IS(splice)) {
        int pipes[2];
        MUST(pipe(pipes));
        write(pipes[1], "spliced", 7);
        return CALL(splice, pipes[0], 0, fd, 0, 7, 0);
    }
    if (IS(chown)) return CALL(chown, "file", 12, 34);
    if (IS(fchown)) return CALL(fchown, fd, 12, 34);
    if (IS(lchown)) return CALL(lchown, "file", 12, 34);
    if (IS(fchownat)) return CALL(fchownat, AT_FDCWD, "file", 12, 34, 0);
    errno = ENOSYS;
    return -1;
}

static void prepare(const char *directory) {
    MUST(mkdir(directory, 0755));
    MUST(chdir(directory));
    MUST(mkdir("dir", 0755));
    int other = MUST(open("other", O_RDWR | O_CREAT, 0644)), file = MUST(open("file", O_RDWR | O_CREAT, 0644));
    MUST(write(other, "the other file", 14));
    MUST(write(file, "content of the file", 19));
    MUST(setxattr("file", "user.old", "v", 1, 0));
    close(other);
    close(file);
    MUST(chdir(".."));
}

int main(int argc, char **argv) {
    unseen = !strcmp(argv[1], "unseen");
    for (int i = 2; i < argc; i++) {
        if (!strcmp(argv[1], "prepare")) {
            prepare(argv[i]);
            continue;
        }
        MUST(chdir(argv[i]));
        // Never closed, since that is a moment at which times are read.
        fd = MUST(open("file", strncmp(argv[i], "fut", 3) ? O_RDWR : O_RDONLY));
        long result = act(argv[i]);
        printf("%s: %s\n", argv[i], result < 0 ? strerrorname_np(errno) : "ok");
        MUST(chdir(".."));
    }
    return 0;
}
