// Bad pointers get the kernel's own answer, and what was written before the fault is what is mirrored.
#include "say.h"

int main(void) {
    long page = sysconf(_SC_PAGESIZE);
    char *map = mmap(0, 4 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memset(map, 'm', 4 * page);
    munmap(map + 2 * page, page);
    mprotect(map + 3 * page, page, PROT_NONE);
    char *bad = (char *)8, *edge = map + 2 * page - 100, *closed = map + 3 * page;
    int fd = open("f", O_RDWR | O_CREAT, 0644);
    SAY(write(fd, bad, 10));
    SAY(write(fd, closed, 10));
    SAY(write(fd, (char *)-1, 10));
    SAY(pwrite(fd, bad, 10, 5));
    SAY(write(fd, edge, 100));
    // Past the edge: a short count or EFAULT, as the file system has it.
    SAY(write(fd, edge, 200));
    SAY(pwrite(fd, edge, 5000, 300));
    SAY(write(fd, map, 3 * page));
    SAY(write(fd, map, (size_t)-1));
    SAY(write(fd, map, (size_t)1 << 62));
    SAY(lseek(fd, 0, SEEK_CUR));
    struct iovec v[3] = {{"good", 4}, {bad, 10}, {"never", 5}};
    SAY(writev(fd, v, 3));
    SAY(pwritev(fd, v, 3, 9000));
    v[1] = (struct iovec){edge, 300};
    SAY(writev(fd, v, 3));
    v[1] = (struct iovec){map, (size_t)-1};
    SAY(writev(fd, v, 3));
    SAY(writev(fd, (struct iovec *)bad, 2));
    SAY(writev(fd, (struct iovec *)(map + 2 * page - sizeof *v), 2));
    SAY(syscall(SYS_write, fd, bad, 3));
    SAY(syscall(SYS_pwrite64, fd, closed, 3, 0));
    SAY(lseek(fd, 0, SEEK_CUR));
    // Paths.
    char *path = map + 2 * page - 3;
    memcpy(path, "p/q", 3);
    SAY(open(bad, O_WRONLY | O_CREAT, 0644));
    SAY(open(path, O_WRONLY | O_CREAT, 0644));
    SAY(open(0, O_WRONLY | O_CREAT, 0644));
    SAY(mkdir(bad, 0755));
    SAY(mkdir(path, 0755));
    SAY(rename("f", bad));
    SAY(rename(bad, "f"));
    SAY(unlink(closed));
    SAY(link(bad, "x"));
    SAY(link("f", path));
    SAY(symlink(bad, "s"));
    SAY(symlink("s", bad));
    SAY(truncate(bad, 1));
    SAY(chmod(bad, 0600));
    SAY(chown(closed, 1, 1));
    SAY(rmdir(bad));
    SAY(mknod(bad, S_IFIFO | 0644, 0));
    SAY(utimensat(AT_FDCWD, bad, 0, 0));
    SAY(utimensat(AT_FDCWD, "f", (struct timespec *)bad, 0));
    SAY(syscall(SYS_setxattr, "f", bad, "v", 1, 0));
    SAY(syscall(SYS_setxattr, "f", "user.x", bad, 1, 0));
    SAY(syscall(SYS_setxattr, bad, "user.x", "v", 1, 0));
    SAY(syscall(SYS_fsetxattr, fd, "user.x", closed, 1, 0));
    SAY(copy_file_range(fd, (void *)bad, fd, 0, 10, 0));
    // A path that ends right at the edge of what is mapped.
    memcpy(map + 2 * page - 5, "edge", 5);
    SAY(mkdir(map + 2 * page - 5, 0755));
    memcpy(map + 2 * page - 6, "e/two", 6);
    SAY(mkdir("e", 0755));
    SAY(close(open(map + 2 * page - 6, O_WRONLY | O_CREAT, 0644)));
    // Buffers that change protection underfoot, and one mapped from the file itself.
    char *of_file = mmap(0, page, PROT_READ, MAP_SHARED, fd, 0);
    SAY(pwrite(fd, of_file, 100, 50));
    SAY(pwrite(fd, of_file, 4096, 1));
    char *past = mmap(0, 4 * page, PROT_READ, MAP_SHARED, open("short", O_RDWR | O_CREAT, 0644), 0);
    SAY(pwrite(fd, past, 10, 0));
    SAY(write(fd, past + page, 10));
    look("f");
    return 0;
}
