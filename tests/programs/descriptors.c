// Descriptors by every way: copied, inherited, sent, closed wholesale, reused.
#include "say.h"
#include <dirent.h>
#include <linux/close_range.h>
#include <sys/resource.h>
#include <sys/socket.h>

static void list(const char *when) {
    DIR *d = opendir("/proc/self/fd");
    printf("%s:", when);
    int open_fds[256], n = 0;
    for (struct dirent *e; (e = readdir(d));)
        if (e->d_name[0] != '.' && atoi(e->d_name) != dirfd(d))
            open_fds[n++] = atoi(e->d_name);
    closedir(d);
    for (int i = 0; i < 1024; i++)
        for (int j = 0; j < n; j++)
            if (open_fds[j] == i)
                printf(" %d", i);
    printf("\n");
    fflush(stdout);
}

static int file(const char *name) { return MUST(open(name, O_RDWR | O_CREAT, 0644)); }

static void send_fd(int socket, int fd) {
    char space[CMSG_SPACE(sizeof fd)] = {0}, byte = 0;
    struct iovec v = {&byte, 1};
    struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1, .msg_control = space, .msg_controllen = sizeof space};
    struct cmsghdr *c = CMSG_FIRSTHDR(&m);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(c), &fd, sizeof fd);
    MUST(sendmsg(socket, &m, 0));
}

static int receive_fd(int socket) {
    char space[CMSG_SPACE(sizeof(int))], byte;
    struct iovec v = {&byte, 1};
    struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1, .msg_control = space, .msg_controllen = sizeof space};
    MUST(recvmsg(socket, &m, 0));
    int fd;
    memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof fd);
    return fd;
}

int main(int argc, char **argv) {
    if (argc > 1 && !strcmp(argv[1], "inherited")) {
        list("after exec");
        SAY(write(9, " by exec", 8));
        SAY(ftruncate(8, 3));
        return 0;
    }
    list("at first");
    int a = file("a");
    SAY(dup(a));
    SAY(dup2(a, 20));
    SAY(dup3(a, 21, O_CLOEXEC));
    SAY(fcntl(a, F_DUPFD, 30));
    SAY(fcntl(a, F_DUPFD_CLOEXEC, 40));
    SAY(write(20, "20 ", 3));
    SAY(write(21, "21 ", 3));
    SAY(write(30, "30 ", 3));
    SAY(write(40, "40 ", 3));
    // The same number stands for another file.
    SAY(dup2(file("b"), 20));
    SAY(write(20, "in b", 4));
    SAY(close(30));
    SAY(write(30, "x", 1));
    SAY(dup2(1, 40));
    close(40);
    SAY(dup2(open("/dev/null", O_WRONLY), 21));
    SAY(write(21, "nowhere", 7));
    SAY(dup2(20, 21));
    SAY(write(21, " and back in b", 14));
    list("after dups");
    // /proc/self/fd opens anew.
    int again = open("/proc/self/fd/20", O_WRONLY | O_APPEND);
    SAY(write(again, " by proc", 8));
    int through_dev = open("/dev/fd/20", O_WRONLY);
    SAY(pwrite(through_dev, "IN", 2, 0));
    FILE *stream = fdopen(dup(20), "w");
    fprintf(stream, " by fdopen");
    fclose(stream);
    // Sent over a socket, to itself and to a child.
    int pair[2];
    MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
    int c = file("c");
    send_fd(pair[0], c);
    close(c);
    int got = receive_fd(pair[1]);
    SAY(write(got, "received", 8));
    pid_t child = fork();
    if (child == 0) {
        int mine = receive_fd(pair[1]);
        SAY(write(mine, " in the child", 13));
        SAY(fchmod(mine, 0600));
        _exit(0);
    }
    send_fd(pair[0], got);
    wait_for(child);
    SAY(write(got, " and after", 10));
    close(pair[0]);
    close(pair[1]);
    // Inherited over exec.
    dup2(file("d"), 8);
    dup2(file("e"), 9);
    write(8, "truncated by the child", 22);
    write(9, "written", 7);
    child = fork();
    if (child == 0) {
        execl("/proc/self/exe", "descriptors", "inherited", (char *)0);
        _exit(1);
    }
    wait_for(child);
    SAY(write(9, " on", 3));
    // Wholesale closing, as daemons do.
    SAY(close_range(20, 50, 0));
    SAY(write(20, "x", 1));
    list("after close_range");
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    for (int fd = 10; fd < 1024; fd++)
        close(fd);
    closefrom(10);
    SAY(syscall(SYS_close_range, 10, ~0u, 0));
    list("after closefrom");
    SAY(close(file("after-closefrom")));
    SAY(write(a, "still here", 10));
    int f = file("f");
    SAY(write(f, "new", 3));
    // Without any descriptor left but stdout.
    SAY(close_range(2, ~0u, 0));
    SAY(mkdir("no-descriptors", 0755));
    SAY(write(file("g"), "fresh", 5));
    // Descriptor limit reached: the answer is the kernel's.
    limit.rlim_cur = 5;
    setrlimit(RLIMIT_NOFILE, &limit);
    SAY(dup(1));
    SAY(dup(1));
    SAY(dup(1));
    SAY(open("too-many", O_WRONLY | O_CREAT, 0644));
    SAY(mkdir("d2", 0755));
    SAY(rename("d2", "d3"));
    SAY(truncate("g", 2));
    for (int fd = 0; fd < 6; fd++)
        printf("%d %s\n", fd, fcntl(fd, F_GETFD) < 0 ? "closed" : "open");
    return 0;
}
