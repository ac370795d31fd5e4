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

int main(void) {
    buffer = malloc(SIZE * 2);
    pthread_t a, b, c;
    pthread_create(&a, 0, scribbler, 0);
    pthread_create(&b, 0, writes, "first");
    pthread_create(&c, 0, writes, "second");
    pthread_join(b, 0);
    pthread_join(c, 0);
    ended = 1;
    pthread_join(a, 0);
    return 0;
}
