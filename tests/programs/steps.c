// Counts the instructions of a write to a descriptor outside the primary, by stepping through a child of itself.
// Prints instructions for a loop of 100 writes and one of 200, and the system calls in the second hundred.
#include "say.h"
#include <sys/ptrace.h>
#include <sys/user.h>

static long count(int fd, int writes, long *calls) {
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        // Whatever is done once is done before it counts.
        for (int i = 0; i < 10; i++)
            write(fd, "x", 1);
        ptrace(PTRACE_TRACEME, 0, 0, 0);
        raise(SIGSTOP);
        for (int i = 0; i < writes; i++)
            write(fd, "x", 1);
        raise(SIGUSR1);
        _exit(0);
    }
    int status;
    waitpid(child, &status, 0);
    long steps = 0;
    *calls = 0;
    for (;;) {
        errno = 0;
        struct user_regs_struct r;
        ptrace(PTRACE_GETREGS, child, 0, &r);
        // `syscall` is two bytes.
        long code = ptrace(PTRACE_PEEKTEXT, child, r.rip, 0);
        *calls += errno == 0 && (code & 0xffff) == 0x050f;
        if (ptrace(PTRACE_SINGLESTEP, child, 0, 0) < 0)
            break;
        waitpid(child, &status, 0);
        if (!WIFSTOPPED(status) || WSTOPSIG(status) == SIGUSR1)
            break;
        steps++;
    }
    kill(child, SIGKILL);
    waitpid(child, &status, 0);
    return steps;
}

int main(int argc, char **argv) {
    int fd = MUST(open(argv[1], O_WRONLY | O_CREAT, 0644));
    long calls1, calls2, one = count(fd, 100, &calls1), two = count(fd, 200, &calls2);
    printf("%ld instructions and %ld system calls a hundred writes\n", two - one, calls2 - calls1);
    return 0;
}
