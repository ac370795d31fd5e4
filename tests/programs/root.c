// What only root may: another root directory, and another user from here on.
#include "say.h"
#include <grp.h>

static void put(const char *name, const char *text) {
    int fd = open(name, O_WRONLY | O_CREAT | O_APPEND, 0644);
    if (fd < 0 || write(fd, text, strlen(text)) < 0)
        printf("put %s: %s\n", name, strerrorname_np(errno));
    close(fd);
}

int main(void) {
    MUST(mkdir("jail", 0755));
    MUST(mkdir("jail/in", 0777));
    MUST(chmod("jail/in", 0777));
    int above = open(".", O_RDONLY | O_DIRECTORY);
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        SAY(chroot("jail"));
        // The current directory still lies outside of the new root.
        put("by-old-cwd", "old");
        SAY(chdir("/"));
        put("/absolute", "in the jail");
        put("../../still", "in the jail too");
        SAY(mkdir("/in/../made", 0700));
        SAY(rename("/absolute", "/in/absolute"));
        SAY(symlink("/in/absolute", "/soft"));
        put("/soft", " by symlink");
        SAY(mkdirat(above, "outside-by-fd", 0755));
        SAY(renameat(AT_FDCWD, "/in/absolute", above, "out-of-jail"));
        SAY(execl("/bin/true", "true", (char *)0));
        put("after-exec", "x");
        _exit(0);
    }
    wait_for(child);
    child = fork();
    if (child == 0) {
        SAY(chroot("/"));
        put("root-is-root", "x");
        SAY(setgroups(0, 0));
        SAY(setgid(65534));
        SAY(setuid(65534));
        SAY(open("not-allowed", O_WRONLY | O_CREAT, 0644));
        put("jail/in/by-nobody", "allowed");
        SAY(chmod("jail/in/by-nobody", 0600));
        SAY(chmod("jail", 0600));
        SAY(unlink("root-is-root"));
        _exit(1);
    }
    wait_for(child);
    child = fork();
    if (child == 0) {
        SAY(seteuid(65534));
        SAY(open("not-allowed", O_WRONLY | O_CREAT, 0644));
        put("jail/in/by-nobody2", "allowed");
        SAY(seteuid(0));
        put("root-again", "x");
        _exit(0);
    }
    wait_for(child);
    return 0;
}
