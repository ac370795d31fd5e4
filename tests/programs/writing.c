// All ways to write, and where each leaves the offset.
#include "say.h"
#include <aio.h>
#include <linux/aio_abi.h>
#include <linux/fs.h>
#include <sys/sendfile.h>

static int file(const char *name, int flags) { return MUST(open(name, flags | O_CREAT, 0644)); }

static void plain(void) {
    int fd = file("plain", O_RDWR);
    char *big = pattern(3 << 20, 1);
    SAY(write(fd, "0123456789", 10));
    SAY(write(fd, "", 0));
    SAY(write(fd, 0, 0));
    SAY(pwrite(fd, "AB", 2, 3));
    SAY(pwrite(fd, "far", 3, 100000));
    SAY(pwrite(fd, "neg", 3, -5));
    SAY(lseek(fd, 0, SEEK_CUR));
    SAY(write(fd, big, 3 << 20));
    SAY(lseek(fd, 5000, SEEK_SET));
    struct iovec v[4] = {{"one", 3}, {"", 0}, {big, 70000}, {"four", 4}};
    SAY(writev(fd, v, 4));
    SAY(pwritev(fd, v, 3, 2 << 20));
    SAY(pwritev2(fd, v, 1, -1, 0));
    SAY(pwritev2(fd, v, 2, 10, RWF_APPEND));
    SAY(pwritev2(fd, v, 1, 20, RWF_DSYNC));
    SAY(pwritev2(fd, v, 1, 20, 0x40000000));
    SAY(writev(fd, v, -1));
    SAY(writev(fd, v, 0));
    SAY(writev(fd, v, 5000));
    SAY(lseek(fd, 0, SEEK_CUR));
    struct iovec many[1024];
    for (int i = 0; i < 1024; i++)
        many[i] = (struct iovec){big + i, i % 7};
    SAY(writev(fd, many, 1024));
    SAY(dprintf(fd, "%s %d", "formatted", 42));
    close(fd);
    SAY(write(fd, "closed", 6));
    int rd = open("plain", O_RDONLY);
    SAY(write(rd, "read only", 9));
    SAY(pwrite(rd, "read only", 9, 0));
    close(rd);
    free(big);
}

static void append(void) {
    int fd = file("append", O_WRONLY | O_APPEND), other = file("append", O_RDWR);
    SAY(write(fd, "first ", 6));
    SAY(pwrite(fd, "appends too ", 12, 0));
    SAY(pwrite(other, "F", 1, 0));
    SAY(ftruncate(other, 9));
    SAY(write(fd, "end", 3));
    SAY(fcntl(fd, F_SETFL, 0));
    SAY(lseek(fd, 1, SEEK_SET));
    SAY(write(fd, "not appended", 12));
    SAY(fcntl(other, F_SETFL, O_APPEND));
    SAY(write(other, "appended", 8));
    struct iovec v = {"noappend", 8};
    SAY(pwritev2(other, &v, 1, 2, 0x20) >= -1);
    close(fd);
    close(other);
}

static void shared_offset(void) {
    int fd = file("offset", O_WRONLY), copy = dup(fd);
    for (int i = 0; i < 5; i++) {
        dprintf(fd, "a%d ", i);
        dprintf(copy, "b%d ", i);
    }
    fflush(stdout);
    pid_t children[3];
    for (int c = 0; c < 3; c++)
        if ((children[c] = fork()) == 0) {
            for (int i = 0; i < 200; i++)
                write(c % 2 ? fd : copy, "1234567\n", 8);
            _exit(0);
        }
    for (int c = 0; c < 3; c++)
        wait_for(children[c]);
    SAY(lseek(fd, 0, SEEK_CUR));
    SAY(lseek(fd, 1 << 20, SEEK_SET));
    SAY(write(copy, "after a hole", 12));
    close(fd);
    close(copy);
}

static void inside_the_kernel(void) {
    int from = file("from", O_RDWR), to = file("to", O_RDWR), pipes[2];
    char *bytes = pattern(50000, 9);
    write(from, bytes, 50000);
    free(bytes);
    loff_t in = 100, out = 7;
    SAY(copy_file_range(from, &in, to, &out, 20000, 0));
    printf("offsets %ld %ld\n", (long)in, (long)out);
    lseek(from, 0, SEEK_SET);
    SAY(copy_file_range(from, 0, to, 0, 3000, 0));
    SAY(copy_file_range(from, 0, from, 0, 3000, 0));
    SAY(copy_file_range(from, 0, to, 0, 3000, 1));
    off_t start = 11;
    SAY(sendfile(to, from, &start, 5000));
    SAY(sendfile(to, from, 0, 4000));
    SAY(lseek(to, 0, SEEK_CUR));
    MUST(pipe(pipes));
    SAY(write(pipes[1], "through a pipe, spliced", 23));
    loff_t at = 60000;
    SAY(splice(pipes[0], 0, to, &at, 10, 0));
    SAY(splice(pipes[0], 0, to, 0, 100, SPLICE_F_NONBLOCK));
    SAY(splice(from, 0, pipes[1], 0, 500, 0));
    SAY(splice(pipes[0], 0, to, 0, 500, SPLICE_F_MOVE));
    int reflink = file("reflink", O_RDWR);
    // Where reflinks do not exist the error is the same.
    int cloned = ioctl(reflink, FICLONE, from);
    printf("FICLONE %s\n", cloned < 0 ? strerrorname_np(errno) : "ok");
    struct file_clone_range range = {.src_fd = from, .src_length = 4096, .dest_offset = 8192};
    cloned = ioctl(reflink, FICLONERANGE, &range);
    printf("FICLONERANGE %s\n", cloned < 0 ? strerrorname_np(errno) : "ok");
    SAY(ioctl(to, 0x12345678, 0));
    close(from);
    close(to);
    close(reflink);
    close(pipes[0]);
    close(pipes[1]);
}

static void posix_aio(void) {
    int fd = file("aio", O_RDWR);
    struct aiocb blocks[4], *list[4];
    for (int i = 0; i < 4; i++) {
        memset(&blocks[i], 0, sizeof blocks[i]);
        blocks[i].aio_fildes = fd;
        blocks[i].aio_buf = pattern(5000, i);
        blocks[i].aio_nbytes = 5000;
        blocks[i].aio_offset = i * 6000;
        blocks[i].aio_lio_opcode = LIO_WRITE;
        list[i] = &blocks[i];
    }
    SAY(aio_write(&blocks[0]));
    const struct aiocb *one[] = {&blocks[0]};
    SAY(aio_suspend(one, 1, 0));
    SAY(aio_return(&blocks[0]));
    SAY(lio_listio(LIO_WAIT, list + 1, 3, 0));
    for (int i = 1; i < 4; i++)
        SAY(aio_return(&blocks[i]));
    struct aiocb sync = {.aio_fildes = fd};
    SAY(aio_fsync(O_SYNC, &sync));
    one[0] = &sync;
    SAY(aio_suspend(one, 1, 0));
    close(fd);
}

static void linux_aio(void) {
    int fd = file("libaio", O_RDWR);
    aio_context_t context = 0;
    SAY(syscall(SYS_io_setup, 16, &context));
    struct iocb blocks[8], *list[8];
    memset(blocks, 0, sizeof blocks);
    for (int i = 0; i < 8; i++) {
        blocks[i].aio_fildes = fd;
        blocks[i].aio_lio_opcode = IOCB_CMD_PWRITE;
        blocks[i].aio_buf = (uintptr_t)pattern(4096, i);
        blocks[i].aio_nbytes = 4096;
        blocks[i].aio_offset = (7 - i) * 4096;
        list[i] = &blocks[i];
    }
    SAY(syscall(SYS_io_submit, context, 5, list));
    struct io_event events[8];
    SAY(syscall(SYS_io_getevents, context, 5, 5, events, 0));
    for (int i = 0; i < 5; i++)
        printf("event %ld\n", (long)events[i].res);
    // Never reaped: destroying the context waits for them.
    SAY(syscall(SYS_io_submit, context, 3, list + 5));
    SAY(syscall(SYS_io_destroy, context));
    SAY(syscall(SYS_io_submit, context, 1, list));
    close(fd);
    struct {
        unsigned sq_entries[30];
    } parameters = {{0}};
    // Known exception: answered as on a kernel without it, so nothing is said about the answer.
    int ring = syscall(425, 4, &parameters);
    if (ring >= 0)
        close(ring);
}

int main(void) {
    plain();
    append();
    shared_offset();
    inside_the_kernel();
    posix_aio();
    linux_aio();
    for (const char *const *name = (const char *const[]){"plain", "append", "offset", "from", "to", "reflink", "aio", "libaio", 0}; *name; name++)
        look(*name);
    return 0;
}
