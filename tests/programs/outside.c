// Into the primary and out of it. Argument: a directory outside, on the same file system.
#include "say.h"

static char path[PATH_MAX];
static const char *outside;
static const char *out(const char *name) {
    snprintf(path, sizeof path, "%s/%s", outside, name);
    return path;
}
static void make(const char *name, const char *text) {
    int fd = MUST(open(name, O_WRONLY | O_CREAT | O_TRUNC, 0640));
    write(fd, text, strlen(text));
    close(fd);
}

int main(int argc, char **argv) {
    outside = argv[1];
    int od = MUST(open(outside, O_RDONLY | O_DIRECTORY));
    char away[PATH_MAX];

    // A file by rename, with a descriptor that was opened before and is written on.
    make(out("file"), "made outside");
    int held = open(out("file"), O_WRONLY | O_APPEND);
    SAY(rename(out("file"), "file"));
    SAY(write(held, ", written inside", 16));
    SAY(fchmod(held, 0604));
    // A file by link: two names, one of them never ours.
    make(out("two"), "two names");
    int two = open(out("two"), O_RDWR);
    SAY(link(out("two"), "two"));
    SAY(pwrite(two, "TWO", 3, 0));
    SAY(truncate(out("two"), 5));
    SAY(linkat(od, "two", AT_FDCWD, "three", 0));
    SAY(write(two, "333", 3));
    // A whole tree, with a hard link, a symlink, a fifo and open files in it.
    SAY(mkdirat(od, "tree", 0751));
    SAY(mkdirat(od, "tree/sub", 0700));
    make(out("tree/a"), "a in the tree");
    make(out("tree/sub/b"), "b in the tree");
    snprintf(away, sizeof away, "%s", out("tree/a"));
    SAY(link(away, out("tree/sub/hard")));
    SAY(symlinkat("../a", od, "tree/sub/soft"));
    SAY(mkfifoat(od, "tree/fifo", 0600));
    int in_tree = open(out("tree/sub/b"), O_WRONLY | O_APPEND), dir_fd = open(out("tree/sub"), O_RDONLY | O_DIRECTORY);
    SAY(rename(out("tree"), "tree"));
    SAY(write(in_tree, " and on", 7));
    SAY(unlinkat(dir_fd, "hard", 0));
    SAY(mkdirat(dir_fd, "by-old-fd", 0700));
    SAY(close(openat(dir_fd, "file-by-old-fd", O_WRONLY | O_CREAT, 0600)));
    // Out again: a removal; what is written to it then is nobody's.
    SAY(renameat(AT_FDCWD, "tree/sub", od, "left"));
    SAY(write(in_tree, " unseen", 7));
    SAY(mkdirat(dir_fd, "unseen", 0700));
    SAY(rename("file", out("gone")));
    SAY(write(held, " also unseen", 12));
    // And back in under another name.
    SAY(renameat(od, "gone", AT_FDCWD, "back"));
    SAY(write(held, " seen again", 11));
    SAY(renameat(od, "left", AT_FDCWD, "tree/returned"));
    SAY(write(in_tree, " seen", 5));
    // Exchange across the border, for files and for trees.
    make("mine", "mine");
    make(out("yours"), "yours");
    SAY(renameat2(AT_FDCWD, "mine", od, "yours", 2));
    look("mine");
    SAY(mkdirat(od, "dir", 0700));
    make(out("dir/x"), "x");
    SAY(renameat2(od, "dir", AT_FDCWD, "tree", 2));
    look("tree/x");
    SAY(renameat2(od, "dir", AT_FDCWD, "tree", 2));
    // Symlinks in both directions.
    SAY(symlink(outside, "way-out"));
    make("way-out/not-ours", "outside by a symlink");
    SAY(mkdir("way-out/dir-not-ours", 0700));
    char cwd[PATH_MAX];
    getcwd(cwd, sizeof cwd);
    SAY(symlinkat(cwd, od, "way-in"));
    make(out("way-in/by-symlink"), "inside by a symlink");
    SAY(mkdirat(od, "way-in/dir-by-symlink", 0700));
    SAY(renameat(od, "way-in/by-symlink", od, "way-in/dir-by-symlink/moved"));
    SAY(chdir("way-out"));
    make("outside-by-cwd", "x");
    make("way-in/inside-by-cwd", "inside");
    SAY(chdir(cwd));
    // From one side to the other inside the kernel, and a mount-wide rename error stays the kernel's.
    SAY(rename("back", "/proc/back"));
    SAY(rename("/proc/version", "version"));
    SAY(link("/proc/version", "version"));
    SAY(unlinkat(od, "yours", 0));
    SAY(rename("way-out", out("way-out-too")));
    look("back");
    look("two");
    look("three");
    look("tree/returned/b");
    return 0;
}
