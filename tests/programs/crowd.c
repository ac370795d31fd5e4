// Several processes at random work on few names, so that they collide all the time.
// Arguments: seed, processes, operations of each. Failed calls are wanted: they must not be mirrored.
#include "say.h"
#include <sys/xattr.h>

static uint64_t state;
static unsigned any(unsigned below) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (state >> 20) % below;
}

static char *name(void) {
    static char names[8][64];
    static int turn;
    char *at = names[turn++ % 8];
    static const char *const directories[] = {"", "", "d0/", "d1/", "d0/e/", "d1/e/", "./d0/../", "link/"};
    snprintf(at, 64, "%sf%u", directories[any(8)], any(6));
    return at;
}

static char *directory(void) {
    static char names[4][32];
    static int turn;
    char *at = names[turn++ % 4];
    static const char *const bases[] = {"d0", "d1", "d0/e", "d1/e", "m0", "m1", "m0/m", "m1/m"};
    snprintf(at, 32, "%s", bases[any(8)]);
    return at;
}

static char bytes[70000];
static int who;
static size_t some(void) {
    static const size_t sizes[] = {1, 13, 100, 511, 4096, 5000, 9000, 65000};
    size_t size = sizes[any(8)];
    char tag[32];
    int n = snprintf(tag, sizeof tag, "<%d.%u>", who, any(1000000));
    for (size_t i = 0; i < size; i++)
        bytes[i] = tag[i % n];
    return size;
}

static int held[8];

static void step(void) {
    int fd = -1, slot;
    switch (any(30)) {
    case 0: case 1: case 2:
        fd = open(name(), O_WRONLY | O_CREAT | (any(3) ? 0 : O_TRUNC) | (any(4) ? 0 : O_EXCL), any(2) ? 0644 : 0600);
        write(fd, bytes, some());
        break;
    case 3: case 4:
        fd = open(name(), O_RDWR | O_CREAT, 0644);
        for (int i = any(4); i >= 0; i--)
            pwrite(fd, bytes, some(), any(100000));
        break;
    case 5: case 6:
        fd = open("log", O_WRONLY | O_CREAT | O_APPEND, 0644);
        for (int i = any(5); i >= 0; i--)
            write(fd, bytes, some() % 600 + 1);
        break;
    case 7:
        fd = open("hot", O_RDWR | O_CREAT, 0644);
        for (int i = 0; i < 8; i++)
            pwrite(fd, bytes, some(), any(16) * 4096);
        break;
    case 8: case 9: case 10: rename(name(), name()); break;
    case 11: rename(directory(), directory()); break;
    case 12: renameat2(AT_FDCWD, any(3) ? name() : directory(), AT_FDCWD, any(3) ? name() : directory(), 1 + any(2)); break;
    case 13: case 14: unlink(name()); break;
    case 15: mkdir(directory(), any(2) ? 0755 : 0700); break;
    case 16: rmdir(directory()); break;
    case 17: link(name(), name()); break;
    case 18: symlink(any(2) ? "f1" : "../d1/f2", name()); break;
    case 19: chmod(name(), any(2) ? 0640 : 0666); break;
    case 20: truncate(name(), any(50000)); break;
    case 21: {
        struct timespec times[2] = {{any(1000), any(1000)}, {any(1000000), any(1000000000)}};
        utimensat(AT_FDCWD, name(), times, any(2) ? AT_SYMLINK_NOFOLLOW : 0);
        break;
    }
    case 22: {
        char *key = any(2) ? "user.a" : "user.b";
        any(3) ? setxattr(name(), key, bytes, some() % 200 + 1, any(3)) : removexattr(name(), key);
        break;
    }
    case 23: case 24:
        // Descriptors that are kept over what happens to their names.
        slot = any(8);
        if (held[slot] > 0)
            close(held[slot]);
        held[slot] = open(name(), O_RDWR | O_CREAT, 0644);
        return;
    case 25: case 26:
        slot = any(8);
        if (held[slot] > 0 && write(held[slot], bytes, some()) >= 0 && !any(4))
            ftruncate(held[slot], any(30000));
        return;
    case 27: {
        fd = open(name(), O_RDWR | O_CREAT, 0644);
        static const int modes[] = {0, 1, 3, 0x10, 8, 0x20};
        fallocate(fd, modes[any(6)], any(8) * 4096, (1 + any(4)) * 4096);
        break;
    }
    case 28: {
        fd = open(name(), O_RDWR | O_CREAT, 0644);
        loff_t from = any(5000), to = any(20000);
        int other = open(name(), O_RDONLY);
        copy_file_range(other, &from, fd, &to, 1 + any(9000), 0);
        close(other);
        break;
    }
    case 29: {
        char temporary[] = "tXXXXXX";
        fd = mkstemp(temporary);
        write(fd, bytes, some());
        any(4) ? rename(temporary, name()) : unlink(temporary);
        write(fd, bytes, some());
        break;
    }
    }
    if (fd >= 0)
        close(fd);
}

int main(int argc, char **argv) {
    unsigned seed = atoi(argv[1]), processes = atoi(argv[2]), operations = atoi(argv[3]);
    mkdir("d0", 0755);
    mkdir("d1", 0755);
    mkdir("d0/e", 0755);
    symlink("d1", "link");
    for (who = 0; who < processes; who++)
        if (fork() == 0) {
            state = (seed + 1) * 0x9e3779b97f4a7c15u + who * 0xbf58476d1ce4e5b9u + 1;
            for (unsigned i = 0; i < operations; i++)
                step();
            _exit(0);
        }
    int status = 0, bad = 0;
    while (wait(&status) > 0)
        bad += status != 0;
    printf("%u processes, %d ended badly\n", processes, bad);
    return bad != 0;
}
