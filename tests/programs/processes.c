// Children of every kind, and what they inherit.
#include "say.h"
#include <sched.h>
#include <spawn.h>
extern char **environ;

static void put(const char *name, const char *text) {
    int fd = open(name, O_WRONLY | O_CREAT | O_APPEND, 0644);
    if (fd < 0 || write(fd, text, strlen(text)) < 0)
        printf("put %s: %s\n", name, strerrorname_np(errno));
    close(fd);
}

static int cloned(void *name) {
    put(name, "by clone");
    _exit(3);
}

int main(int argc, char **argv) {
    if (argc > 1) {
        put(argv[1], argc > 2 ? argv[2] : "executed");
        return 0;
    }
    pid_t child = fork();
    if (child == 0) {
        put("fork", "child");
        if (fork() == 0) {
            put("fork", " grandchild");
            _exit(0);
        }
        wait(0);
        _exit(1);
    }
    wait_for(child);
    child = vfork();
    if (child == 0) {
        int fd = open("vfork", O_WRONLY | O_CREAT, 0600);
        write(fd, "vforked", 7);
        _exit(2);
    }
    wait_for(child);
    put("vfork", " parent");
    child = vfork();
    if (child == 0) {
        execl("/proc/self/exe", "p", "vfork-exec", (char *)0);
        _exit(1);
    }
    wait_for(child);
    child = syscall(SYS_fork);
    if (child == 0) {
        put("raw-fork", "raw");
        syscall(SYS_exit_group, 4);
    }
    wait_for(child);
    char *stack = malloc(65536);
    child = clone(cloned, stack + 65536, SIGCHLD, "clone");
    wait_for(child);
    child = clone(cloned, stack + 65536, CLONE_VM | CLONE_VFORK | SIGCHLD, "clone-vm");
    wait_for(child);
    child = clone(cloned, stack + 65536, CLONE_FILES | CLONE_FS | SIGCHLD, "clone-files");
    wait_for(child);

    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 1, "spawned", O_WRONLY | O_CREAT | O_TRUNC, 0644);
    posix_spawn_file_actions_adddup2(&actions, 1, 2);
    posix_spawn_file_actions_addclosefrom_np(&actions, 3);
    char *echo[] = {"sh", "-c", "echo spawned; echo error >&2; echo inner > spawned-inner", 0};
    SAY_NUMBER(posix_spawnp(&child, "sh", &actions, 0, echo, environ));
    wait_for(child);
    posix_spawnattr_t attributes;
    posix_spawnattr_init(&attributes);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETPGROUP);
    char *nothing[] = {0};
    char *touch[] = {"touch", "spawned-bare", 0};
    SAY_NUMBER(posix_spawn(&child, "/usr/bin/touch", 0, &attributes, touch, nothing));
    wait_for(child);
    SAY_NUMBER(posix_spawn(&child, "/no/such/program", 0, 0, touch, environ));
    printf("system %d\n", system("echo system > system; exit 5"));
    FILE *into = popen("cat > popened", "w");
    fputs("through a pipe", into);
    printf("pclose %d\n", pclose(into));

    // Every exec, with the environment kept, emptied, and without our variables.
    char *self[] = {"p", "execve-empty", 0};
    if ((child = fork()) == 0)
        _exit(execve("/proc/self/exe", self, nothing));
    wait_for(child);
    self[1] = "execve-null";
    if ((child = fork()) == 0)
        _exit(execve("/proc/self/exe", self, 0));
    wait_for(child);
    self[1] = "execv";
    if ((child = fork()) == 0) {
        clearenv();
        _exit(execv("/proc/self/exe", self));
    }
    wait_for(child);
    self[1] = "fexecve";
    if ((child = fork()) == 0) {
        int fd = open("/proc/self/exe", O_RDONLY);
        _exit(fexecve(fd, self, nothing));
    }
    wait_for(child);
    self[1] = "execveat";
    if ((child = fork()) == 0) {
        int fd = open("/proc/self/exe", O_PATH);
        _exit(syscall(SYS_execveat, fd, "", self, nothing, AT_EMPTY_PATH));
    }
    wait_for(child);
    self[1] = "raw-execve";
    if ((child = fork()) == 0)
        _exit(syscall(SYS_execve, "/proc/self/exe", self, nothing));
    wait_for(child);
    if ((child = fork()) == 0) {
        unsetenv("LD_PRELOAD");
        _exit(execlp("sh", "sh", "-c", "echo execlp > execlp", (char *)0));
    }
    wait_for(child);
    // A script with an interpreter, and one without.
    int script = open("script", O_WRONLY | O_CREAT, 0755);
    dprintf(script, "#!/bin/sh\necho scripted > scripted\nenv -i /bin/sh -c 'echo deeper > deeper'\n");
    close(script);
    char *run[] = {"./script", 0};
    if ((child = fork()) == 0)
        _exit(execve("./script", run, nothing));
    wait_for(child);
    // Failed execs leave the process working.
    SAY(execl("/no/such", "x", (char *)0));
    SAY(execl("/etc/passwd", "x", (char *)0));
    put("after-failed-exec", "works");
    // A daemon: away from its parent, its terminal and its directory.
    char cwd[PATH_MAX];
    getcwd(cwd, sizeof cwd);
    int done[2];
    MUST(pipe(done));
    if ((child = fork()) == 0) {
        setsid();
        if (fork())
            _exit(0);
        chdir("/");
        char path[PATH_MAX + 10];
        snprintf(path, sizeof path, "%s/daemon", cwd);
        put(path, "from /");
        write(done[1], "x", 1);
        _exit(0);
    }
    wait_for(child);
    char byte;
    SAY(read(done[0], &byte, 1));
    // Killed in the middle of a stream of writes.
    if ((child = fork()) == 0)
        for (;;)
            put("killed", "line\n");
    usleep(30000);
    kill(child, SIGKILL);
    wait_for(child);
    put("killed", "end\n");
    // Ends in every way.
    if ((child = fork()) == 0) {
        FILE *f = fopen("at-exit", "w");
        fputs("flushed", f);
        exit(6);
    }
    wait_for(child);
    if ((child = fork()) == 0) {
        put("aborted", "x");
        abort();
    }
    wait_for(child);
    // The last exec of this process itself.
    execl("/proc/self/exe", "p", "last", "replaced", (char *)0);
    return 1;
}
