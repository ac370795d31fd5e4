// Threads, signals, cancellation and small stacks.
#include "say.h"
#include <pthread.h>
#include <setjmp.h>
#include <ucontext.h>

static int log_fd, pipes[2];

static void *writer(void *number) {
    char name[32], line[32];
    snprintf(name, sizeof name, "thread%ld", (long)number);
    int fd = open(name, O_WRONLY | O_CREAT, 0644);
    for (int i = 0; i < 300; i++) {
        int n = snprintf(line, sizeof line, "%ld:%d\n", (long)number, i);
        write(fd, line, n);
        if (i % 50 == 0) {
            char other[40];
            snprintf(other, sizeof other, "%s.%d", name, i);
            mkdir(other, 0755);
            rename(other, i % 100 ? "fought-over" : other);
        }
        write(log_fd, "0123456789abcde\n", 16);
    }
    close(fd);
    return 0;
}

static void *small(void *name) {
    int fd = open(name, O_WRONLY | O_CREAT, 0644);
    write(fd, name, strlen(name));
    fsync(fd);
    char other[32];
    snprintf(other, sizeof other, "%s2", (char *)name);
    rename(name, other);
    close(fd);
    return 0;
}

static volatile int handled;
static int handler_fd;
static void handler(int signal) {
    int saved = errno;
    write(handler_fd, "signal\n", 7);
    int fd = open("from-handler", O_WRONLY | O_CREAT | O_APPEND, 0644);
    write(fd, "h", 1);
    close(fd);
    rename("flip", "flop") && rename("flop", "flip");
    handled++;
    errno = saved;
}

static sigjmp_buf away;
static void jump(int signal) { siglongjmp(away, 1); }

static void *reads(void *unused) {
    char byte;
    read(pipes[0], &byte, 1);
    return 0;
}
static void *fills(void *unused) {
    char chunk[4096] = {0};
    for (;;)
        write(pipes[1], chunk, sizeof chunk);
}
static void *busy(void *unused) {
    int fd = open("cancelled", O_WRONLY | O_CREAT | O_APPEND, 0644);
    for (;;) {
        write(fd, "whole record of thirty-two byte\n", 32);
        pthread_testcancel();
    }
}
static void *disabled(void *unused) {
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, 0);
    pthread_cancel(pthread_self());
    int fd = open("uncancelled", O_WRONLY | O_CREAT, 0644);
    write(fd, "not cancelled", 13);
    close(fd);
    return (void *)1;
}

static void cancel(const char *what, void *(*body)(void *)) {
    pthread_t thread;
    void *result = 0;
    pthread_create(&thread, 0, body, 0);
    usleep(20000);
    pthread_cancel(thread);
    pthread_join(thread, &result);
    printf("%s: %s\n", what, result == PTHREAD_CANCELED ? "cancelled" : "ended");
    fflush(stdout);
}

int main(void) {
    alarm(60);
    mkdir("flip", 0755);
    log_fd = open("log", O_WRONLY | O_CREAT | O_APPEND, 0644);
    pthread_t threads[8];
    for (long i = 0; i < 8; i++)
        pthread_create(&threads[i], 0, writer, (void *)i);
    for (int i = 0; i < 8; i++)
        pthread_join(threads[i], 0);
    look("log");
    look("thread7");

    // As little stack as is allowed.
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, PTHREAD_STACK_MIN);
    pthread_create(&threads[0], &attributes, small, "small-stack");
    pthread_join(threads[0], 0);
    look("small-stack2");
    // Many threads one after the other: slots are given back.
    for (int i = 0; i < 600; i++) {
        pthread_create(&threads[0], &attributes, small, "short");
        pthread_join(threads[0], 0);
    }
    look("short2");

    // Handlers that write, on an own small stack, while the program writes.
    stack_t stack = {.ss_sp = malloc(16384), .ss_size = 16384};
    sigaltstack(&stack, 0);
    struct sigaction action = {.sa_handler = handler, .sa_flags = SA_ONSTACK | SA_RESTART};
    sigaction(SIGALRM, &action, 0);
    handler_fd = open("handled", O_WRONLY | O_CREAT | O_APPEND, 0644);
    struct itimerval {
        struct timeval interval, value;
    } timer = {{0, 500}, {0, 500}};
    syscall(SYS_setitimer, 0, &timer, 0);
    int fd = open("interrupted", O_WRONLY | O_CREAT, 0644);
    char *bytes = pattern(20000, 3);
    for (int i = 0; i < 3000 || handled < 50; i++) {
        pwrite(fd, bytes, 1 + i % 20000, (i % 5) * 1000);
        if (i % 10 == 0) {
            int t = open("temporary", O_WRONLY | O_CREAT, 0644);
            close(t);
            rename("temporary", "renamed");
            unlink("renamed");
        }
    }
    memset(&timer, 0, sizeof timer);
    syscall(SYS_setitimer, 0, &timer, 0);
    printf("handled %d\n", handled >= 50);
    close(fd);

    // Jumps out of a handler, wherever it strikes.
    action.sa_handler = jump;
    action.sa_flags = SA_NODEFER;
    sigaction(SIGALRM, &action, 0);
    fd = open("jumped", O_WRONLY | O_CREAT, 0644);
    volatile int jumps = 0;
    volatile long written = 0;
    while (jumps < 200) {
        if (sigsetjmp(away, 1)) {
            if (++jumps >= 200)
                break;
        }
        timer.value.tv_sec = 0;
        timer.value.tv_usec = 50 + jumps * 3;
        syscall(SYS_setitimer, 0, &timer, 0);
        for (int i = 0; i < 100000; i++)
            if (pwrite(fd, bytes + i % 100, 5000, (i % 10) * 500) == 5000)
                written++;
    }
    timer.value.tv_usec = 0;
    syscall(SYS_setitimer, 0, &timer, 0);
    printf("jumped %d\n", jumps);
    SAY(pwrite(fd, "after the jumps", 15, 0));
    SAY(mkdir("after-jumps", 0755));
    signal(SIGALRM, SIG_DFL);
    alarm(60);

    // All signals blocked or set to their default.
    sigset_t all;
    sigfillset(&all);
    sigprocmask(SIG_BLOCK, &all, 0);
    SAY(write(fd, "blocked", 7));
    SAY(rename("after-jumps", "blocked-jumps"));
    sigset_t now;
    sigprocmask(SIG_SETMASK, 0, &now);
    printf("mask kept %d\n", sigismember(&now, SIGUSR1) && sigismember(&now, SIGTERM));
    sigemptyset(&all);
    sigprocmask(SIG_SETMASK, &all, 0);
    for (int i = 1; i < 65; i++)
        signal(i, SIG_DFL);
    SAY(write(fd, "default", 7));

    // Cancellation points stay cancellation points.
    pipe(pipes);
    cancel("blocked in read", reads);
    cancel("blocked in write", fills);
    cancel("busy writing", busy);
    struct stat st;
    stat("cancelled", &st);
    printf("whole records %d\n", st.st_size % 32 == 0);
    pthread_create(&threads[0], 0, disabled, 0);
    void *result;
    pthread_join(threads[0], &result);
    printf("disabled %ld\n", (long)result);
    look("uncancelled");

    // The main thread ends first; another one replaces the process.
    SAY(close(fd));
    return 0;
}
