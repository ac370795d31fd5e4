// Stores through shared mappings where the kernel doesn't say which pages they went to: children of fork(2)'s raw call,
// and a process that may not ask. Threads that map and unmap at the same time. A mapping much larger than its file.
#include "say.h"
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <stddef.h>
#include <sys/prctl.h>

static char *map(const char *name, off_t size, size_t mapped) {
    int fd = MUST(open(name, O_RDWR | O_CREAT, 0644));
    MUST(ftruncate(fd, size));
    char *at = mmap(0, mapped, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (at == MAP_FAILED) {
        printf("mmap: %s\n", strerrorname_np(errno));
        exit(9);
    }
    return at;
}

static void *mapper(void *argument) {
    long number = (long)argument;
    char name[32];
    for (int i = 0; i < 50; i++) {
        snprintf(name, sizeof name, "thread-%ld-%d", number, i % 5);
        char *at = map(name, 40000, 40960);
        memset(at + number * 1000 + i * 100, 'a' + i % 26, 2000);
        if (i % 3 == 0)
            msync(at, 40960, MS_SYNC);
        munmap(at + 4096, 4096);
        at[10000] = 'A' + i % 26;
        munmap(at, 40960);
    }
    return 0;
}

int main(void) {
    pthread_t threads[4];
    for (long i = 0; i < 4; i++)
        pthread_create(&threads[i], 0, mapper, (void *)i);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], 0);

    char *large = map("large", 50 << 20, 1ul << 40);
    memset(large + (30 << 20), 'L', 100000);
    SAY(msync(large, 1ul << 40, MS_SYNC));
    large[50000] = 'l';

    char *at = map("raw-fork", 30000, 32768);
    at[0] = 'p';
    long child = MUST(syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0));
    if (child == 0) {
        memset(at + 8000, 'c', 9000);
        syscall(SYS_exit_group, 0);
    }
    wait_for(child);
    at[20000] = 'P';

    // What was tracked stays right when it can't be any more.
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_userfaultfd, 1, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_process_vm_readv, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof filter / sizeof *filter, filter};
    MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    MUST(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program));
    large[60000] = 'm';
    SAY(munmap(large, 1ul << 40));
    at[100] = 'q';
    SAY(msync(at, 32768, MS_SYNC));
    char *untracked = map("untracked", 3 << 20, 3 << 20);
    untracked[5000] = 'u';
    SAY(msync(untracked, 8192, MS_SYNC));
    untracked[2 << 20] = 'U';
    SAY(msync(untracked, 3 << 20, MS_SYNC));
    memset(untracked + 100000, 'v', 100000);
    usleep(1500000);
    memset(untracked + 1000000, 'w', 100000);
    SAY(munmap(untracked, 1 << 20));
    fflush(stdout);
    child = MUST(fork());
    if (child == 0) {
        memset(untracked + (2 << 20) + 5000, 'x', 100000);
        kill(getpid(), SIGKILL);
    }
    wait_for(child);
    memset(untracked + (1 << 20) + 5000, 'y', 100000);
    return 0;
}
