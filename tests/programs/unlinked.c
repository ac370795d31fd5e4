// Files without a name, and names that pass from one file to another.
#include "say.h"

static int file(const char *name, const char *text) {
    int fd = MUST(open(name, O_RDWR | O_CREAT | O_TRUNC, 0644));
    write(fd, text, strlen(text));
    return fd;
}

int main(void) {
    int gone = file("f", "first");
    SAY(unlink("f"));
    SAY(write(gone, " nameless", 9));
    int second = file("f", "second file");
    SAY(pwrite(gone, "not in the second", 17, 0));
    SAY(ftruncate(gone, 3));
    SAY(fchmod(gone, 0777));
    SAY(pwrite(second, "SECOND", 6, 0));
    char proc[64];
    snprintf(proc, sizeof proc, "/proc/self/fd/%d", gone);
    SAY(linkat(AT_FDCWD, proc, AT_FDCWD, "revived", AT_SYMLINK_FOLLOW));
    SAY(close(gone));
    // Another name keeps the file alive.
    SAY(link("f", "g"));
    SAY(unlink("f"));
    SAY(write(second, " under g", 8));
    snprintf(proc, sizeof proc, "/proc/self/fd/%d", second);
    SAY(linkat(AT_FDCWD, proc, AT_FDCWD, "f", AT_SYMLINK_FOLLOW));
    SAY(write(second, " and f", 6));
    // Replaced while open: both go on.
    int old = file("target", "old target"), new = file("source", "new target");
    SAY(rename("source", "target"));
    SAY(write(old, " lost", 5));
    SAY(write(new, " kept", 5));
    SAY(link("target", "target2"));
    SAY(pwrite(new, "NEW", 3, 0));
    // A name taken in turn by files, directories, links and pipes.
    for (int i = 0; i < 20; i++) {
        close(file("turn", "a file"));
        unlink("turn");
        mkdir("turn", 0700);
        rmdir("turn");
        symlink("f", "turn");
        unlink("turn");
        mkfifo("turn", 0600);
        unlink("turn");
    }
    int last = file("turn", "the last");
    // Inode numbers come back at once on many file systems.
    for (int i = 0; i < 200; i++) {
        int fd = file("reused", "x");
        if (i % 3)
            unlink("reused");
        write(fd, "late write to a file that has gone", 34);
        close(fd);
    }
    // Swapped while both are written.
    int a = file("a", "aaaa"), b = file("b", "bbbb");
    for (int i = 0; i < 50; i++) {
        rename("a", "t");
        write(a, "A", 1);
        rename("b", "a");
        write(b, "B", 1);
        rename("t", "b");
        pwrite(a, "0", 1, i % 9);
    }
    look("a");
    look("b");
    SAY(write(last, " ends", 5));
    look("turn");
    look("f");
    look("target2");
    return 0;
}
