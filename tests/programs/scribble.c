// One thread changes the buffers that others are writing from: the record must hold what the file holds.
#include "say.h"
#include <pthread.h>

enum { SIZE = 20000, ROUNDS = 4000 };
static unsigned char *buffer;
static volatile int ended;

static void *scribbler(void *unused) {
    for (unsigned n = 0; !ended; n++)
        for (int i = 0; i < SIZE; i += 64)
            buffer[i + n % 64] = n;
    return 0;
}

static void *writes(void *name) {
    int fd = open(name, O_RDWR | O_CREAT, 0644);
    struct iovec v[3] = {{buffer, 3000}, {buffer + 100, 7000}, {buffer + 5000, 15000}};
    for (int i = 0; i < ROUNDS; i++) {
        pwrite(fd, buffer, SIZE, (i % 8) * SIZE);
        if (i % 16 == 0)
            pwritev(fd, v, 3, 200000);
    }
    write(fd, buffer, SIZE);
    writev(fd, v, 3);
    close(fd);
    return 0;
}

// Pages come and go under a write: the answer is the kernel's, the record what reached the file.
static char *window;
static void *remapper(void *unused) {
    while (!ended) {
        mprotect(window + 8192, 4096, PROT_NONE);
        mprotect(window + 8192, 4096, PROT_READ | PROT_WRITE);
        madvise(window + 4096, 4096, MADV_DONTNEED);
    }
    return 0;
}

int main(void) {
    buffer = malloc(SIZE * 2);
    pthread_t a, b, c, d;
    pthread_create(&a, 0, scribbler, 0);
    pthread_create(&b, 0, writes, "first");
    pthread_create(&c, 0, writes, "second");
    pthread_join(b, 0);
    pthread_join(c, 0);
    window = mmap(0, 5 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memset(window, 'w', 5 * 4096);
    pthread_create(&d, 0, remapper, 0);
    int fd = open("faults", O_RDWR | O_CREAT, 0644), whole = 0, other = 0;
    for (int i = 0; i < 20000; i++) {
        ssize_t n = pwrite(fd, window, 5 * 4096, 0);
        n == 5 * 4096 ? whole++ : other++;
        if (n < -1 || n == 0 || n > 5 * 4096)
            printf("impossible %ld\n", (long)n);
    }
    ended = 1;
    pthread_join(a, 0);
    pthread_join(d, 0);
    printf("%d\n", whole + other);
    return 0;
}
