/* Runs the kernels of x86_kernels.c as a PV guest: its command line is pairs "number=n"; it prints a
 * result for each. bench_native.py */
#include <guest.h>

u64 kernel(u64 number, u64 n);

int main(int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        char *end;
        u64 number = strtoul(argv[i], &end, 10);

        if (*end != '=')
            panic("say: number=n ...");
        printf("kernel %lu: %#lx\n", number, kernel(number, strtoul(end + 1, NULL, 10)));
    }
    return 0;
}
