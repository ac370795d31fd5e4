// Linux's asynchronous I/O: writes that take effect some time between two calls.
#include "say.h"
#include <linux/aio_abi.h>

static aio_context_t context;
static struct iocb blocks[32];
static char data[32][8192];

static struct iocb *block(int at, int fd, int opcode, const void *buffer, size_t count, off_t offset) {
    struct iocb *b = &blocks[at];
    memset(b, 0, sizeof *b);
    b->aio_lio_opcode = opcode;
    b->aio_fildes = fd;
    b->aio_buf = (uintptr_t)buffer;
    b->aio_nbytes = count;
    b->aio_offset = offset;
    b->aio_data = at;
    return b;
}
static struct iocb *writes(int at, int fd, size_t count, off_t offset) {
    memset(data[at], 'a' + at % 26, sizeof data[at]);
    return block(at, fd, IOCB_CMD_PWRITE, data[at], count, offset);
}
static long submit(int number, struct iocb **list) { return syscall(SYS_io_submit, context, number, list); }
// The results in the order of the blocks, since ends come in any order.
static void reap(int number) {
    struct io_event events[32];
    long results[32];
    for (int i = 0; i < 32; i++)
        results[i] = -99999;
    for (int got = 0; got < number;) {
        long more = MUST(syscall(SYS_io_getevents, context, 1, 32, events, 0));
        for (int i = 0; i < more; i++)
            results[events[i].data] = events[i].res;
        got += more;
    }
    for (int i = 0; i < 32; i++)
        if (results[i] != -99999)
            printf("  block %d: %ld\n", i, results[i]);
}

int main(void) {
    SAY(syscall(SYS_io_setup, 64, &context));
    int fd = MUST(open("plain", O_RDWR | O_CREAT, 0644));
    struct iocb *list[32];
    for (int i = 0; i < 20; i++)
        list[i] = writes(i, fd, 1000 + i * 300, i * 2500);
    SAY(submit(20, list));
    reap(20);

    // In parts, through a descriptor that can't be read, and one that is closed before the end is seen.
    int only = MUST(open("only", O_WRONLY | O_CREAT, 0644));
    struct iovec parts[] = {{data[1], 700}, {data[2], 800}, {data[3], 0}, {data[4], 900}};
    list[0] = block(0, only, IOCB_CMD_PWRITEV, parts, 4, 300);
    list[1] = writes(1, only, 8192, 100000);
    SAY(submit(2, list));
    SAY(close(only));
    reap(2);

    int append = MUST(open("appended", O_RDWR | O_CREAT | O_APPEND, 0644));
    SAY(write(append, "head", 4));
    for (int i = 0; i < 3; i++) {
        list[0] = writes(i, append, 500, 0);
        SAY(submit(1, list));
        reap(1);
    }

    // What the kernel refuses, at once and later.
    int readable = MUST(open("plain", O_RDONLY));
    list[0] = writes(0, fd, 100, 60000);
    list[1] = writes(1, readable, 100, 0);
    list[2] = writes(2, fd, 100, 70000);
    SAY(submit(3, list));
    reap(1);
    list[0] = block(0, fd, IOCB_CMD_PWRITE, (void *)16, 100, 0);
    SAY(submit(1, list));
    list[0] = block(0, fd, IOCB_CMD_PWRITE, data[0], 100, -5);
    SAY(submit(1, list));
    SAY(syscall(SYS_io_submit, context, 1, (void *)16));
    SAY(submit(0, list));
    SAY(submit(-1, list));
    SAY(syscall(SYS_io_submit, (aio_context_t)4096, 1, list));

    // Past the page cache, where the file system has that.
    int direct = open("direct", O_RDWR | O_CREAT | O_DIRECT, 0644);
    if (direct >= 0) {
        static char aligned[4][8192] __attribute__((aligned(4096)));
        int submitted = 0;
        for (int i = 0; i < 4; i++) {
            memset(aligned[i], 'D' + i, sizeof aligned[i]);
            list[0] = block(i, direct, IOCB_CMD_PWRITE, aligned[i], 8192, i * 16384);
            submitted += MUST(submit(1, list));
        }
        reap(submitted);
        close(direct);
    }

    // One block for two writes at a time.
    list[0] = writes(0, fd, 4000, 80000);
    SAY(submit(1, list));
    blocks[0].aio_offset = 90000;
    SAY(submit(1, list));
    struct io_event events[4];
    int got = 0;
    while (got < 2)
        got += MUST(syscall(SYS_io_getevents, context, 1, 4, events, 0));

    // Ends that nobody asks for: the context goes, and the process.
    list[0] = writes(5, fd, 3000, 120000);
    SAY(submit(1, list));
    SAY(syscall(SYS_io_destroy, context));
    for (int how = 0; how < 3; how++) {
        fflush(stdout);
        pid_t child = fork();
        if (child == 0) {
            context = 0;
            MUST(syscall(SYS_io_setup, 8, &context));
            list[0] = writes(how, fd, 5000, 200000 + how * 6000);
            MUST(submit(1, list));
            if (how == 0)
                kill(getpid(), SIGKILL);
            if (how == 1)
                execl("/bin/true", "true", (char *)0);
            _exit(3);
        }
        wait_for(child);
    }
    look("plain");
    look("only");
    look("appended");
    return 0;
}
