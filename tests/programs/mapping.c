// Stores through shared mappings.
#include "say.h"

static int file(const char *name, off_t size) {
    int fd = MUST(open(name, O_RDWR | O_CREAT, 0644));
    MUST(ftruncate(fd, size));
    return fd;
}
static char *map(int fd, size_t size, int protection) {
    char *at = mmap(0, size, protection, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED) {
        printf("mmap: %s\n", strerrorname_np(errno));
        exit(9);
    }
    return at;
}

int main(void) {
    int both = PROT_READ | PROT_WRITE;
    int fd = file("synced", 100000);
    char *at = map(fd, 100000, both);
    memcpy(at + 5000, "five thousand", 13);
    memset(at + 50000, 'm', 30000);
    SAY(msync(at, 100000, MS_SYNC));
    memcpy(at + 1, "part", 4);
    SAY(msync(at, 4096, MS_ASYNC));
    SAY(munmap(at, 100000));
    close(fd);

    fd = file("unmapped", 20000);
    at = map(fd, 20000, both);
    close(fd);
    memcpy(at + 19990, "the end", 7);
    // Past the end of the file, in its last page: lost.
    at[20001] = 'x';
    SAY(munmap(at + 8192, 12288));
    at[3] = '3';
    SAY(munmap(at, 8192));

    fd = file("left-at-exit", 30000);
    at = map(fd, 30000, both);
    memset(at + 10000, 'e', 10000);

    fd = file("replaced", 8192);
    at = map(fd, 8192, both);
    at[100] = 'r';
    // Another mapping laid over it.
    SAY(mmap(at, 8192, both, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == at);
    at[200] = 'x';

    fd = file("moved", 8192);
    at = map(fd, 8192, both);
    at[0] = 'a';
    at = mremap(at, 8192, 16384, MREMAP_MAYMOVE);
    SAY(ftruncate(fd, 16384));
    at[10000] = 'b';
    SAY(msync(at, 16384, MS_SYNC));

    fd = file("protected", 8192);
    at = map(fd, 8192, PROT_READ);
    SAY(mprotect(at, 8192, both));
    memcpy(at, "writable now", 12);
    SAY(mprotect(at, 8192, PROT_READ));
    SAY(munmap(at, 8192));

    fd = file("renamed", 8192);
    at = map(fd, 8192, both);
    close(fd);
    SAY(rename("renamed", "renamed2"));
    memcpy(at + 50, "after the rename", 16);
    SAY(msync(at, 8192, MS_SYNC));
    SAY(link("renamed2", "renamed3"));
    SAY(unlink("renamed2"));
    memcpy(at + 4096, "after the unlink", 16);
    SAY(munmap(at, 8192));

    fd = file("deleted", 8192);
    at = map(fd, 8192, both);
    SAY(unlink("deleted"));
    at[0] = 'g';
    SAY(munmap(at, 8192));
    close(fd);

    // Written and mapped at once, by parent and children, one of which is killed and one of which execs.
    fd = file("shared", 65536);
    at = map(fd, 65536, both);
    for (int i = 0; i < 4; i++) {
        fflush(stdout);
        pid_t child = fork();
        if (child == 0) {
            memset(at + i * 16384, 'A' + i, 10000);
            pwrite(fd, "child", 5, i * 16384 + 12000);
            if (i == 1)
                kill(getpid(), SIGKILL);
            if (i == 2)
                execl("/bin/true", "true", (char *)0);
            _exit(i);
        }
        wait_for(child);
    }
    memcpy(at + 16000, "parent", 6);
    SAY(pwrite(fd, "PARENT", 6, 32000));
    SAY(at[32000] == 'P');

    // A mapping of a file that grows afterwards, and of one that shrinks.
    fd = file("grows", 100);
    at = map(fd, 16384, both);
    SAY(ftruncate(fd, 16384));
    memcpy(at + 9000, "grown", 5);
    SAY(msync(at, 16384, MS_SYNC));
    SAY(ftruncate(fd, 5000));
    at[4000] = 's';
    SAY(msync(at, 16384, MS_SYNC));
    SAY(munmap(at, 16384));

    // Private mappings and read-only ones change nothing.
    fd = file("private", 8192);
    at = mmap(0, 8192, both, MAP_PRIVATE, fd, 0);
    at[0] = 'p';
    SAY(munmap(at, 8192));
    SAY(mmap(0, 4096, both, MAP_SHARED, open("private", O_RDONLY), 0) == MAP_FAILED);
    // A mapping for a while: found while the program runs.
    fd = file("slow", 8192);
    at = map(fd, 8192, both);
    for (int i = 0; i < 5; i++) {
        at[i * 1000] = 'a' + i;
        usleep(100000);
    }
    return 0;
}
