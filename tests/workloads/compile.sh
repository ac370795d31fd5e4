# A compiler, a linker, archives and a parallel make.
set -e
cat > main.c <<'C'
#include <stdio.h>
int twice(int);
int main(void) { FILE *out = fopen("made", "w"); for (int i = 0; i < 999; i++) fprintf(out, "%d\n", twice(i)); fclose(out); return 0; }
C
echo 'int twice(int x) { return 2 * x; }' > twice.c
printf 'program: main.o libtwice.a\n\tgcc -o $@ main.o libtwice.a\nlibtwice.a: twice.o\n\tar rcs $@ $^\n%%.o: %%.c\n\tgcc -g -O1 -MD -c -o $@ $<\n' > Makefile
make -s -j2 program; ./program; wc -l < made
gcc -save-temps -pipe -O2 -o saved main.c twice.c; gcc -shared -fPIC -o libtwice.so twice.c; strip saved
objcopy --only-keep-debug program program.debug; touch twice.c; make -s program; ranlib libtwice.a
