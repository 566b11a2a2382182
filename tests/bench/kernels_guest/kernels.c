/* The benchmark's kernels, with the options of a C guest. */
#include "../x86_kernels.c"
