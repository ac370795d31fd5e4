// Stores through a shared mapping for as long as it takes, and never says so: until the file that it is given exists.
#include "say.h"

int main(int count, char **arguments) {
    int fd = MUST(open("lasting", O_RDWR | O_CREAT, 0644));
    MUST(ftruncate(fd, 1 << 20));
    char *at = mmap(0, 1 << 20, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED || count < 2)
        return 9;
    close(fd);
    for (int i = 1; access(arguments[1], F_OK) < 0; i++) {
        snprintf(at + i % 64 * 16384, 64, "store %d\n", i);
        usleep(10000);
    }
    return 0;
}
