// Pages come and go under a write: the answer is the kernel's, and the record holds what reached the file.
#include "say.h"
#include <pthread.h>

static char *window;
static volatile int ended;

static void *remapper(void *unused) {
    while (!ended) {
        mprotect(window + 8192, 4096, PROT_NONE);
        mprotect(window + 8192, 4096, PROT_READ | PROT_WRITE);
        madvise(window + 4096, 4096, MADV_DONTNEED);
    }
    return 0;
}

int main(void) {
    pthread_t thread;
    window = mmap(0, 5 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memset(window, 'w', 5 * 4096);
    pthread_create(&thread, 0, remapper, 0);
    int fd = open("faults", O_RDWR | O_CREAT, 0644);
    // The first write is whole, so that the size is the same in every run.
    MUST(pwrite(fd, "end", 3, 5 * 4096));
    for (int i = 0; i < 20000; i++) {
        ssize_t n = pwrite(fd, window, 5 * 4096, 0);
        if (n < -1 || n == 0 || n > 5 * 4096)
            printf("impossible %ld\n", (long)n);
    }
    ended = 1;
    pthread_join(thread, 0);
    puts("ended");
    return 0;
}
