/* A PV guest that makes a hypercall again and again, N times in each of 15 pieces: xen_version 0, which is quick, or fpu_taskswitch 0, which
 * does as little and is not. Its command line is "N" or "N ordinary". Prints the middle piece's nanoseconds and its calls: "20000 calls,
 * 812345 ns". bench_translator.py */
#include <guest.h>

enum { PIECES = 15 };

int main(int argc, char **argv)
{
    u64 n = argc > 1 ? strtoul(argv[1], NULL, 10) : 1000, spent[PIECES];
    bool ordinary = argc > 2;
    s64 answer = ordinary ? 0 : hypercall_xen_version(0, 0);
    for (unsigned piece = 0; piece < PIECES; piece++) {
        u64 start = time_now(), ns;
        unsigned at = piece;
        for (u64 k = 0; k < n; k++)
            if ((ordinary ? hypercall_fpu_taskswitch(0) : hypercall_xen_version(0, 0)) != answer)
                panic("another answer");
        ns = time_now() - start;
        for (; at && spent[at - 1] > ns; at--)          /* in order */
            spent[at] = spent[at - 1];
        spent[at] = ns;
    }
    printf("%lu calls, %lu ns\n", n, spent[PIECES / 2]);
    return 0;
}
