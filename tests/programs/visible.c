// All that a program can see of itself, but for what is ours by contract (LD_PRELOAD and LOCKSTEP_*).
#include "say.h"
#include <dirent.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/time.h>
extern char **environ;

static int by_name(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

static void list(const char *directory, int with_targets) {
    char *names[512];
    int n = 0;
    DIR *d = opendir(directory);
    for (struct dirent *e; (e = readdir(d)) && n < 512;)
        if (e->d_name[0] != '.' && atoi(e->d_name) != dirfd(d))
            names[n++] = strdup(e->d_name);
    closedir(d);
    qsort(names, n, sizeof *names, by_name);
    for (int i = 0; i < n; i++) {
        char path[300], target[PATH_MAX] = "";
        snprintf(path, sizeof path, "%s/%s", directory, names[i]);
        // 0, 1 and 2 are the test's files, with names of their own.
        if (with_targets && atoi(names[i]) > 2)
            readlink(path, target, sizeof target - 1);
        printf("%s %s\n", names[i], target);
    }
}

int main(int argc, char **argv) {
    int argument_count = argc;
    close(open("made", O_WRONLY | O_CREAT, 0644));
    mkdir("dir", 0755);
    list("/proc/self/fd", 1);
    // Threads: none but this one.
    DIR *tasks = opendir("/proc/self/task");
    int threads = 0;
    for (struct dirent *e; (e = readdir(tasks));)
        threads += e->d_name[0] != '.';
    closedir(tasks);
    printf("threads %d arguments %d name %s\n", threads, argument_count, argv[0]);
    qsort(environ, ({ int n = 0; while (environ[n]) n++; n; }), sizeof *environ, by_name);
    for (char **e = environ; *e; e++)
        if (strncmp(*e, "LD_PRELOAD=", 11) && strncmp(*e, "LOCKSTEP_", 9))
            printf("%.40s\n", *e);
    printf("umask %o errno %d\n", umask(0), errno);
    sigset_t mask, pending;
    sigprocmask(SIG_SETMASK, 0, &mask);
    sigpending(&pending);
    for (int i = 1; i < 65; i++) {
        struct sigaction action;
        if (sigaction(i, 0, &action) == 0 && (action.sa_handler != SIG_DFL || sigismember(&mask, i) || sigismember(&pending, i)))
            printf("signal %d: %s%s\n", i, action.sa_handler == SIG_IGN ? "ignored" : action.sa_handler ? "handled" : "default",
                   sigismember(&mask, i) ? " blocked" : "");
    }
    for (int i = 0; i < RLIMIT_NLIMITS; i++) {
        struct rlimit limit;
        getrlimit(i, &limit);
        printf("limit %d: %ld %ld\n", i, (long)limit.rlim_cur, (long)limit.rlim_max);
    }
    for (int i = 0; i < 3; i++) {
        struct itimerval timer;
        getitimer(i, &timer);
        printf("timer %d: %d\n", i, timer.it_value.tv_sec || timer.it_value.tv_usec);
    }
    stack_t stack;
    sigaltstack(0, &stack);
    printf("alternate stack %d\n", stack.ss_flags);
    printf("dumpable %d no new privileges %d seccomp %d parent death signal %d nice %d policy %d\n", prctl(PR_GET_DUMPABLE), prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0),
           prctl(PR_GET_SECCOMP), ({ int s = 0; prctl(PR_GET_PDEATHSIG, &s); s; }), getpriority(PRIO_PROCESS, 0), sched_getscheduler(0));
    // Executable and writable at once: a hole that must not stay.
    FILE *maps = fopen("/proc/self/maps", "r");
    char line[PATH_MAX + 100];
    int both = 0;
    while (fgets(line, sizeof line, maps))
        both += strstr(line, " rwxp ") != 0 || strstr(line, " rwxs ") != 0;
    printf("writable and executable %d\n", both);
    // No child that is not ours.
    printf("wait %d %s\n", waitpid(-1, 0, WNOHANG), strerrorname_np(errno));
    return 0;
}
