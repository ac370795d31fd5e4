// Modes, owners, times, extended attributes, ACLs and inode flags.
#include "say.h"
#include <linux/fs.h>
#include <sys/time.h>
#include <sys/xattr.h>
#include <utime.h>

// An ACL as the kernel takes it: version 2, then entries of tag, permissions, id.
struct acl {
    uint32_t version;
    struct {
        uint16_t tag, permissions;
        uint32_t id;
    } entries[5];
};

static void times(const char *name) {
    struct stat st;
    lstat(name, &st);
    printf("%s: %ld.%09ld\n", name, (long)st.st_mtim.tv_sec, st.st_mtim.tv_nsec);
}

int main(void) {
    int fd = MUST(open("f", O_RDWR | O_CREAT, 0644));
    write(fd, "text", 4);
    MUST(mkdir("d", 0755));
    MUST(symlink("f", "l"));
    int here = open(".", O_PATH);

    SAY(chmod("f", 0600));
    SAY(fchmod(fd, 0640));
    SAY(fchmodat(here, "f", 0644, 0));
    SAY(fchmodat(AT_FDCWD, "l", 0604, 0));
    SAY(fchmodat(AT_FDCWD, "l", 0604, AT_SYMLINK_NOFOLLOW));
    SAY(fchmodat(AT_FDCWD, "f", 0614, AT_SYMLINK_NOFOLLOW));
    SAY(lchmod("d", 0711));
    SAY(syscall(452, AT_FDCWD, "d", 0751, 0));
    SAY(chmod("d", 03777));
    SAY(chmod("none", 0600));
    int path = open("f", O_PATH);
    SAY(fchmod(path, 0600));
    char proc[64];
    snprintf(proc, sizeof proc, "/proc/self/fd/%d", path);
    SAY(chmod(proc, 0666));
    SAY(chmod("f", 06755));
    SAY(write(fd, "drops setuid unless root", 24));
    look("f");
    SAY(chmod("f", 06755));
    SAY(ftruncate(fd, 3));
    look("f");

    uid_t uid = geteuid();
    gid_t gid = getegid();
    SAY(chown("f", uid, gid));
    SAY(fchown(fd, -1, gid));
    SAY(lchown("l", uid, -1));
    SAY(fchownat(here, "d", uid, gid, AT_SYMLINK_NOFOLLOW));
    SAY(fchownat(fd, "", -1, -1, AT_EMPTY_PATH));
    if (uid == 0) {
        SAY(chmod("f", 04755));
        SAY(chown("f", 1000, 1001));
        look("f");
        SAY(lchown("l", 7, 8));
        SAY(fchown(fd, 0, -1));
        SAY(fchownat(AT_FDCWD, "l", 55, -1, 0));
        SAY(fchownat(fd, "", 66, 77, AT_EMPTY_PATH));
        SAY(chown("d", 5, 6));
    } else {
        SAY(chown("f", 0, 0));
    }

    struct timespec ts[2] = {{100, 1}, {200, 123456789}};
    SAY(utimensat(AT_FDCWD, "f", ts, 0));
    times("f");
    ts[1].tv_nsec = UTIME_OMIT;
    SAY(utimensat(here, "f", ts, 0));
    ts[1] = (struct timespec){300, 999999999};
    SAY(utimensat(AT_FDCWD, "l", ts, AT_SYMLINK_NOFOLLOW));
    times("l");
    SAY(futimens(fd, ts));
    ts[1] = (struct timespec){-5, 5};
    SAY(utimensat(AT_FDCWD, "d", ts, 0));
    times("d");
    struct timeval tv[2] = {{1, 2}, {3, 4}};
    SAY(utimes("f", tv));
    times("f");
    SAY(lutimes("l", tv));
    tv[1].tv_usec = 2000000;
    SAY(utimes("f", tv));
    tv[1].tv_usec = 777;
    SAY(futimes(fd, tv));
    times("f");
    SAY(futimesat(here, "d", tv));
    struct utimbuf ub = {11, 22};
    SAY(utime("f", &ub));
    times("f");
    SAY(syscall(SYS_utimensat, fd, 0, ts, 0));
    ts[1] = (struct timespec){0, UTIME_NOW};
    SAY(utimensat(AT_FDCWD, "d", ts, 0));
    SAY(utime("l", 0));

    // Where a file system has no user attributes, the errors are the same.
    SAY(setxattr("f", "user.one", "1", 1, 0));
    SAY(setxattr("f", "user.one", "2", 1, XATTR_CREATE));
    SAY(setxattr("f", "user.two", "2", 1, XATTR_REPLACE));
    SAY(setxattr("f", "user.one", "longer value", 12, XATTR_REPLACE));
    SAY(fsetxattr(fd, "user.empty", "", 0, 0));
    SAY(lsetxattr("l", "user.on-a-link", "x", 1, 0));
    SAY(lsetxattr("d", "user.dir", "directory", 9, 0));
    char *big = pattern(3000, 4);
    SAY(fsetxattr(fd, "user.big", big, 3000, 0));
    SAY(setxattr("f", "user.too-big", big, 70000, 0));
    SAY(setxattr("f", "nonsense", "x", 1, 0));
    SAY(removexattr("f", "user.empty"));
    SAY(fremovexattr(fd, "user.none"));
    SAY(lremovexattr("d", "user.dir"));
    SAY(syscall(SYS_setxattr, "l", "user.raw", "raw", 3, 0));
    if (uid == 0)
        SAY(setxattr("f", "trusted.root", "only", 4, 0));

    struct acl acl = {2, {{1, 6, -1}, {2, 5, 1234}, {4, 4, -1}, {16, 7, -1}, {32, 0, -1}}};
    SAY(setxattr("f", "system.posix_acl_access", &acl, sizeof acl, 0));
    look("f");
    SAY(setxattr("d", "system.posix_acl_default", &acl, sizeof acl, 0));
    SAY(close(open("d/inherits", O_WRONLY | O_CREAT, 0666)));
    SAY(mkdir("d/inherits-too", 0777));
    look("d/inherits");
    SAY(chmod("f", 0755));
    SAY(removexattr("f", "system.posix_acl_access"));
    look("f");

    int flags = 0;
    if (ioctl(fd, FS_IOC_GETFLAGS, &flags) == 0) {
        flags |= FS_NODUMP_FL;
        SAY(ioctl(fd, FS_IOC_SETFLAGS, &flags));
        if (uid == 0) {
            flags |= FS_APPEND_FL;
            int set = ioctl(fd, FS_IOC_SETFLAGS, &flags);
            printf("append-only: %s\n", set < 0 ? strerrorname_np(errno) : "ok");
            if (set == 0) {
                SAY(open("f", O_WRONLY));
                flags &= ~FS_APPEND_FL;
                SAY(ioctl(fd, FS_IOC_SETFLAGS, &flags));
            }
        }
    }
    close(fd);

    // A file that its own writer may not open again, as git has them.
    fd = open("readonly", O_WRONLY | O_CREAT, 0444);
    SAY(write(fd, "written all the same", 20));
    SAY(mkdir("no-entry", 0700));
    SAY(close(open("no-entry/in", O_WRONLY | O_CREAT, 0400)));
    int in = open("no-entry/in", O_RDONLY);
    SAY(chmod("no-entry", 0));
    SAY(write(fd, ", and again", 11));
    SAY(fchmod(in, 0));
    SAY(chmod("no-entry", 0700));
    close(fd);
    return 0;
}
