// A program that has forbidden itself everything but writing dies of any system call that it did not ask for.
#include "say.h"
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>

#define ALLOW(number)                                                                                                        \
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)

int main(void) {
    int fd = MUST(open("f", O_RDWR | O_CREAT, 0644));
    write(fd, "before ", 7);
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        ALLOW(SYS_write), ALLOW(SYS_pwrite64), ALLOW(SYS_lseek), ALLOW(SYS_close), ALLOW(SYS_exit_group), ALLOW(SYS_ftruncate), ALLOW(SYS_newfstatat), ALLOW(SYS_fstat),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
    };
    struct sock_fprog program = {sizeof filter / sizeof *filter, filter};
    // Both descriptors have been used before, as in programs that set such a filter up.
    puts("before");
    fflush(stdout);
    MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    MUST(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program));
    for (int i = 0; i < 100; i++) {
        write(fd, "inside ", 7);
        pwrite(fd, "PWRITE", 6, i * 3);
    }
    write(1, "alive\n", 6);
    _exit(7);
}
