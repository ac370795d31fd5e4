// All ways to open and to create.
#define _FORTIFY_SOURCE 2
#include "say.h"
#include <linux/openat2.h>

static void through(const char *name, int fd) {
    printf("%s: fd %d %s\n", name, fd, fd < 0 ? strerrorname_np(errno) : "");
    if (fd >= 0) {
        SAY(write(fd, name, strlen(name)));
        close(fd);
    }
}

int main(int argc, char **argv) {
    umask(027);
    through("open", open("open", O_WRONLY | O_CREAT, 0666));
    through("open", open("open", O_WRONLY | O_APPEND));
    through("creat", creat("creat", 0640));
    through("open64", open64("open64", O_RDWR | O_CREAT | O_EXCL, 0777));
    through("open64", open64("open64", O_RDWR | O_CREAT | O_EXCL, 0777));
    through("trunc", open("open64", O_WRONLY | O_TRUNC));
    SAY(mkdir("d", 0777));
    int d = open("d", O_RDONLY | O_DIRECTORY), path = open("d", O_PATH | O_DIRECTORY);
    through("openat", openat(d, "in", O_WRONLY | O_CREAT, 0600));
    through("openat-path", openat(path, "../d/in2", O_WRONLY | O_CREAT | O_TRUNC, 04755));
    struct open_how how = {.flags = O_WRONLY | O_CREAT, .mode = 0644, .resolve = RESOLVE_BENEATH};
    through("openat2", syscall(SYS_openat2, d, "in3", &how, sizeof how));
    through("openat2-escape", syscall(SYS_openat2, d, "../out", &how, sizeof how));
    through("sys-open", syscall(SYS_open, "sysopen", O_WRONLY | O_CREAT, 0622));
    through("sys-creat", syscall(SYS_creat, "syscreat", 0644));
    through("sys-openat", syscall(SYS_openat, AT_FDCWD, "./d/../sysopenat", O_WRONLY | O_CREAT, 0644));
    SAY(symlink("linked", "link"));
    through("by-symlink", open("link", O_WRONLY | O_CREAT, 0644));
    through("nofollow", open("link", O_WRONLY | O_CREAT | O_NOFOLLOW, 0644));
    SAY(symlink("d/far", "link2"));
    through("excl-symlink", open("link2", O_WRONLY | O_CREAT | O_EXCL, 0644));
    through("link2", open("link2", O_WRONLY | O_CREAT, 0644));
    through("is-a-directory", open("d", O_WRONLY));
    through("slash", open("nope/", O_WRONLY | O_CREAT, 0644));
    through("missing", open("no/such", O_WRONLY | O_CREAT, 0644));
    through("empty", open("", O_WRONLY | O_CREAT, 0644));
    through("rdonly-creat", open("rdonly", O_RDONLY | O_CREAT, 0444));
    through("rdonly-trunc", open("open", O_RDONLY | O_TRUNC));
    look("open");

    // Unnamed files, named later in two ways.
    int t = open(".", O_TMPFILE | O_RDWR, 0640);
    printf("tmpfile %d\n", t >= 0);
    if (t >= 0) {
        SAY(write(t, "unnamed", 7));
        char proc[64];
        snprintf(proc, sizeof proc, "/proc/self/fd/%d", t);
        SAY(linkat(AT_FDCWD, proc, AT_FDCWD, "named", AT_SYMLINK_FOLLOW));
        SAY(linkat(AT_FDCWD, proc, d, "named2", AT_SYMLINK_FOLLOW));
        SAY(write(t, " and on", 7));
        SAY(fchmod(t, 0604));
        close(t);
    }
    t = open("d", O_TMPFILE | O_WRONLY | O_EXCL, 0600);
    if (t >= 0) {
        SAY(write(t, "never seen", 10));
        close(t);
    }
    t = open("d", O_TMPFILE | O_WRONLY, 0600);
    if (t >= 0) {
        SAY(pwrite(t, "empty path", 10, 5));
        SAY(linkat(t, "", AT_FDCWD, "by-empty-path", AT_EMPTY_PATH));
        close(t);
    }

    // stdio and its temporary files.
    for (const char *const *mode = (const char *const[]){"w", "a", "r+", "w+", "a+", "wx", "we", 0}; *mode; mode++) {
        FILE *f = fopen("stdio", *mode);
        printf("fopen %s: %s\n", *mode, f ? "ok" : strerrorname_np(errno));
        if (f) {
            fprintf(f, "mode %s\n", *mode);
            fseek(f, 3, SEEK_SET);
            fputs("seek", f);
            fclose(f);
        }
    }
    FILE *f = fopen("first", "w");
    fputs("into the first\n", f);
    f = freopen("second", "w", f);
    fputs("into the second\n", f);
    setvbuf(f, 0, _IONBF, 0);
    fputs("unbuffered\n", f);
    fclose(f);
    FILE *temporary = tmpfile();
    printf("tmpfile: %d\n", temporary && fputs("gone", temporary) >= 0 && fclose(temporary) == 0);
    char names[4][32] = {"aXXXXXX", "bXXXXXX.txt", "cXXXXXX", "dirXXXXXX"};
    int fds[3] = {mkstemp(names[0]), mkstemps(names[1], 4), mkostemp(names[2], O_APPEND)};
    for (int i = 0; i < 3; i++) {
        SAY(write(fds[i], "temporary", 9));
        close(fds[i]);
        const char *fixed[] = {"stemp", "stemps", "ostemp"};
        SAY(rename(names[i], fixed[i]));
    }
    printf("mkdtemp %d\n", mkdtemp(names[3]) != 0);
    SAY(rename(names[3], "dtemp"));
    FILE *last = fopen("flushed-at-exit", "w");
    fputs("by exit", last);
    close(d);
    close(path);
    return 0;
}
