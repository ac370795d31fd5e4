// Linked statically: no library can follow it. Writes, waits to be looked at, and writes again.
#include "say.h"

int main(int argc, char **argv) {
    int fd = MUST(open("by-static", O_RDWR | O_CREAT, 0644));
    MUST(write(fd, "written by a static program", 27));
    MUST(mkdir("static-dir", 0711));
    MUST(symlink("by-static", "static-link"));
    MUST(rename("before", "after"));
    MUST(link("after", "static-dir/hard"));
    int same = MUST(open("same-size", O_WRONLY));
    MUST(pwrite(same, "X", 1, 3));
    MUST(unlink("doomed"));
    puts("half");
    fflush(stdout);
    if (argc > 1)
        sleep(atoi(argv[1]));
    MUST(pwrite(fd, "WRITTEN", 7, 0));
    MUST(chmod("after", 0600));
    return 4;
}
