// Everything that changes names.
#include "say.h"
#include <linux/fs.h>
#include <sys/socket.h>
#include <sys/sysmacros.h>
#include <sys/un.h>

static void make(const char *name, const char *text) {
    int fd = MUST(open(name, O_WRONLY | O_CREAT | O_TRUNC, 0644));
    write(fd, text, strlen(text));
    close(fd);
}

int main(void) {
    SAY(mkdir("a", 0755));
    SAY(mkdir("a/", 0755));
    SAY(mkdir("a/b/", 0711));
    SAY(mkdirat(AT_FDCWD, "./a//b/../c", 0700));
    SAY(mkdir("no/such", 0755));
    int a = open("a", O_RDONLY | O_DIRECTORY), here = open(".", O_PATH);
    SAY(mkdirat(a, "d", 02775));
    SAY(mkdirat(here, "e", 01777));
    make("f", "f");
    make("a/g", "gg");

    SAY(rename("f", "f2"));
    SAY(rename("f2", "f2"));
    SAY(rename("f2", "a/f3"));
    SAY(renameat(a, "f3", here, "f4"));
    SAY(rename("f4", "a/g"));
    SAY(rename("gone", "a/g"));
    SAY(rename("a/g", "a/b"));
    SAY(rename("a", "a/b/in-itself"));
    SAY(rename("a/b", "a/d"));
    SAY(rename("a/d", "dd/"));
    SAY(rename("a/g", "slash/"));
    make("x", "xxx");
    make("y", "yy");
    SAY(renameat2(AT_FDCWD, "x", AT_FDCWD, "y", RENAME_NOREPLACE));
    SAY(renameat2(AT_FDCWD, "x", AT_FDCWD, "z", RENAME_NOREPLACE));
    SAY(renameat2(AT_FDCWD, "z", AT_FDCWD, "y", RENAME_EXCHANGE));
    SAY(renameat2(AT_FDCWD, "y", AT_FDCWD, "dd", RENAME_EXCHANGE));
    SAY(renameat2(AT_FDCWD, "y", AT_FDCWD, "nothing", RENAME_EXCHANGE));
    SAY(renameat2(AT_FDCWD, "y", a, "moved", 0));
    SAY(syscall(SYS_renameat2, AT_FDCWD, "z", a, "z", RENAME_NOREPLACE));
    SAY(syscall(SYS_rename, "a/z", "zz"));
    SAY(renameat2(AT_FDCWD, "zz", AT_FDCWD, "zzz", RENAME_NOREPLACE | RENAME_EXCHANGE));
    SAY(renameat2(AT_FDCWD, "zz", AT_FDCWD, "zzz", 1 << 20));
    if (geteuid() == 0) {
        int whiteout = renameat2(AT_FDCWD, "zz", AT_FDCWD, "zzz", RENAME_WHITEOUT);
        printf("whiteout %s\n", whiteout < 0 ? strerrorname_np(errno) : "ok");
        look("zz");
        look("zzz");
    }
    look("dd");

    SAY(link("a/g", "hard"));
    SAY(link("a/g", "hard"));
    SAY(linkat(a, "g", here, "hard2", 0));
    SAY(rename("hard", "hard2"));
    look("hard");
    SAY(link("a", "of-a-directory"));
    SAY(symlink("a/g", "soft"));
    SAY(symlinkat("nowhere", a, "soft"));
    SAY(linkat(AT_FDCWD, "soft", AT_FDCWD, "hard-of-soft", 0));
    SAY(linkat(AT_FDCWD, "soft", AT_FDCWD, "hard-of-target", AT_SYMLINK_FOLLOW));
    SAY(linkat(AT_FDCWD, "soft", AT_FDCWD, "bad-flag", 1));
    int open_file = open("a/g", O_RDWR);
    char proc[64];
    snprintf(proc, sizeof proc, "/proc/self/fd/%d", open_file);
    SAY(linkat(AT_FDCWD, proc, AT_FDCWD, "by-proc", AT_SYMLINK_FOLLOW));
    SAY(write(open_file, "all names see it", 16));
    SAY(symlink("", "empty"));
    char longest[300];
    memset(longest, 'n', 255);
    longest[255] = 0;
    make(longest, "255");
    longest[255] = 'n';
    longest[256] = 0;
    SAY(open(longest, O_WRONLY | O_CREAT, 0644));
    make("new\nline", "odd");
    make("\xff\xfe", "bytes");
    make(" ", "space");
    make("-rf", "dash");

    SAY(unlink("hard2"));
    SAY(unlink("a"));
    SAY(rmdir("a/g"));
    SAY(rmdir("a"));
    SAY(unlinkat(a, "c", AT_REMOVEDIR));
    SAY(unlinkat(a, "soft", 0));
    SAY(unlinkat(a, "none", 0));
    SAY(remove("e"));
    SAY(remove("by-proc"));
    SAY(rmdir("a/."));
    SAY(syscall(SYS_unlink, "soft"));
    SAY(syscall(SYS_mkdir, "raw", 0750));
    SAY(syscall(SYS_rmdir, "raw"));

    SAY(mkfifo("fifo", 0640));
    SAY(mkfifoat(a, "fifo", 0600));
    SAY(mknod("fifo2", S_IFIFO | 0666, 0));
    SAY(mknod("plain", S_IFREG | 0604, 0));
    SAY(mknodat(a, "plain", 0640, 0));
    int node = mknod("null", S_IFCHR | 0666, makedev(1, 3));
    printf("mknod %s\n", node < 0 ? strerrorname_np(errno) : "ok");
    int s = socket(AF_UNIX, SOCK_STREAM, 0);
    struct sockaddr_un name = {.sun_family = AF_UNIX, .sun_path = "socket"};
    SAY(bind(s, (struct sockaddr *)&name, sizeof name));
    SAY(bind(s, (struct sockaddr *)&name, sizeof name));
    SAY(rename("socket", "a/socket"));

    // A directory moves while files below it are open and it is somebody's current directory.
    SAY(mkdir("tree", 0755));
    SAY(mkdir("tree/in", 0755));
    make("tree/in/file", "before");
    int held = open("tree/in/file", O_WRONLY | O_APPEND), in = open("tree/in", O_RDONLY | O_DIRECTORY);
    SAY(rename("tree", "a/moved-tree"));
    SAY(write(held, " after", 6));
    SAY(fchmod(held, 0600));
    SAY(chdir("a/moved-tree/in"));
    make("by-cwd", "relative");
    SAY(renameat(here, "a/moved-tree", here, "again"));
    make("by-cwd2", "relative still");
    SAY(rename("file", "../up"));
    SAY(mkdirat(in, "by-fd", 0755));
    SAY(fchdir(here));
    SAY(rename("again/in/by-cwd", "a/../again/./in/../by-cwd"));
    SAY(write(held, " end", 4));
    SAY(chdir("again"));
    SAY(rmdir("../again/in/by-fd"));
    SAY(mkdir("../again/made", 0755));
    SAY(fchdir(here));
    close(held);
    close(in);

    // A removed current directory.
    SAY(mkdir("short-lived", 0755));
    SAY(chdir("short-lived"));
    SAY(rmdir("../short-lived"));
    SAY(open("x", O_WRONLY | O_CREAT, 0644));
    SAY(mkdir("x", 0755));
    SAY(fchdir(here));

    // Deeper than PATH_MAX.
    char part[201];
    memset(part, 'D', 200);
    part[200] = 0;
    SAY(mkdir("deep", 0755));
    int at = open("deep", O_RDONLY | O_DIRECTORY);
    for (int i = 0; i < 25; i++) {
        MUST(mkdirat(at, part, 0755));
        int next = MUST(openat(at, part, O_RDONLY | O_DIRECTORY));
        close(at);
        at = next;
    }
    int bottom = openat(at, "bottom", O_WRONLY | O_CREAT, 0644);
    SAY(write(bottom, "deep down", 9));
    SAY(renameat(at, "bottom", at, "ground"));
    SAY(symlinkat("ground", at, "soft"));
    SAY(linkat(at, "ground", AT_FDCWD, "from-the-deep", 0));
    SAY(fchdir(at));
    SAY(mkdir("by-deep-cwd", 0700));
    SAY(truncate("ground", 4));
    SAY(chmod("ground", 0611));
    SAY(unlink("soft"));
    SAY(fchdir(here));
    SAY(rename("deep", "deeper"));
    SAY(write(bottom, "!", 1));
    close(bottom);
    close(at);
    close(a);
    close(here);
    return 0;
}
