/* See kernels.h. No libc, no system: plain C with GNU vectors. */
#include "kernels.h"

typedef uint8_t u8;
typedef uint32_t u32;
typedef uint64_t u64;
unsigned char *kernel_memory;
static size_t built;                    /* of the cycle that kernel_memory holds (chase); 0: none */

static u64 next_random(u64 *x)
{
    *x ^= *x << 13;
    *x ^= *x >> 7;
    *x ^= *x << 17;
    return *x;
}

/* ---- integer ----------------------------------------------------------------------------------------------------- */

/* Arithmetic, logic, shifts, a multiplication; a branch that is taken one time in 16, and as rarely a division: neither what the CPU
 * mispredicts nor its divider decides. */
static u64 integer(u64 n, size_t size)
{
    u64 a = 1, b = 2, c = 3, d = 0x9e3779b97f4a7c15, e = 0;
    for (u64 k = 0; k < n; k++) {
        a += b ^ (c << 3);
        b = b * 6364136223846793005 + (u32)k;
        c = (c >> 7 | c << 57) - d;
        d ^= a + k;
        e += a < c;
        e ^= (u64)(u32)(b >> 11) << (d & 7);
        if (!(d & 15))
            a -= c >> 3;
        if (!(k & 15))
            e += c / (d >> 40 | 1);
    }
    return a ^ b ^ c ^ d ^ e;
}

static u64 dispatch(u64 n, size_t size)
{
    enum { PUSH, ADD, XOR, MUL, DUP, SWAP, DEC, JNZ, END };
    static const u8 program[] = { PUSH, 200, PUSH, 3, SWAP, DUP, PUSH, 5, MUL, XOR, SWAP, PUSH, 7, ADD, SWAP, DEC, JNZ, 5, ADD, END };
    u64 sum = 0;
    for (u64 k = 0; k < n; k++) {
        u64 stack[16], t;
        unsigned sp = 0, count = 200;
        for (unsigned pc = 0;;) {
            switch (program[pc++]) {
            case PUSH: stack[sp++] = program[pc++]; break;
            case ADD: sp--; stack[sp - 1] += stack[sp]; break;
            case XOR: sp--; stack[sp - 1] ^= stack[sp]; break;
            case MUL: sp--; stack[sp - 1] *= stack[sp]; break;
            case DUP: stack[sp] = stack[sp - 1]; sp++; break;
            case SWAP: t = stack[sp - 1]; stack[sp - 1] = stack[sp - 2]; stack[sp - 2] = t; break;
            case DEC: count--; break;
            case JNZ: pc = count ? program[pc] : pc + 1; break;
            case END: goto end;
            }
        }
end:
        sum = sum * 31 + stack[sp - 1] + k;
    }
    return sum;
}

static __attribute__((noinline)) u64 fibonacci(u64 n) { return n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2); }

static u64 recursion(u64 n, size_t size)
{
    u64 sum = 0;
    for (u64 k = 0; k < n; k++) {
        u64 depth = 16;
        __asm__ volatile("" : "+r"(depth));             /* each time again */
        sum = sum * 3 + fibonacci(depth);
    }
    return sum;
}

/* ---- SHA-256 (FIPS 180-4) ---------------------------------------------------------------------------------------- */

static u32 ror(u32 x, unsigned n) { return x >> n | x << (32 - n); }

static u64 sha256(u64 n, size_t size)
{
    static const u32 K[64] = {
        0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be,
        0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa,
        0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85,
        0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3,
        0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f,
        0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2 };
    u32 h[8] = { 0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19 };
    for (u64 k = 0; k < n; k++) {
        u32 w[64], s[8];
        for (unsigned i = 0; i < 16; i++)
            w[i] = h[i % 8] + (u32)k * (i + 1);
        for (unsigned i = 16; i < 64; i++)
            w[i] = w[i - 16] + (ror(w[i - 15], 7) ^ ror(w[i - 15], 18) ^ w[i - 15] >> 3) + w[i - 7] +
                   (ror(w[i - 2], 17) ^ ror(w[i - 2], 19) ^ w[i - 2] >> 10);
        for (unsigned i = 0; i < 8; i++)
            s[i] = h[i];
        for (unsigned i = 0; i < 64; i++) {
            u32 t1 = s[7] + (ror(s[4], 6) ^ ror(s[4], 11) ^ ror(s[4], 25)) + ((s[4] & s[5]) ^ (~s[4] & s[6])) + K[i] + w[i];
            u32 t2 = (ror(s[0], 2) ^ ror(s[0], 13) ^ ror(s[0], 22)) + ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));
            for (unsigned j = 7; j; j--)
                s[j] = s[j - 1];
            s[4] += t1;
            s[0] = t1 + t2;
        }
        for (unsigned i = 0; i < 8; i++)
            h[i] += s[i];
    }
    return (u64)h[0] << 32 | h[7];
}

/* ---- strings of bytes -------------------------------------------------------------------------------------------- */

static void bytes_prepare(size_t size)
{
    u8 *text = kernel_memory;
    u64 x = 88172645463325252;
    for (size_t k = 0; k < size; k++)
        text[k] = k % 11 == 10 ? ' ' : 'a' + next_random(&x) % 26;
    built = 0;
}

static u64 bytes(u64 n, size_t size)
{
    u8 *text = kernel_memory;
    u64 sum = 0;
    for (u64 k = 0; k < n; k++) {
        u32 words = 0, length = 0, hash = 2166136261;
        for (size_t i = 0; i < size; i++) {
            u8 c = text[i];
            if (c < 'a') {
                words++;
                hash ^= length;
                length = 0;
            } else {
                length++;
                c = c - 'a' + 'A';
            }
            hash = (hash ^ c) * 16777619;
        }
        text[k % size] ^= 1;
        sum = sum * 17 + words + hash;
    }
    return sum;
}

/* ---- floating point ---------------------------------------------------------------------------------------------- */

/* The Mandelbrot set, 8 by 8 points an iteration. */
static u64 fp_scalar(u64 n, size_t size)
{
    double sum = 0;
    for (u64 k = 0; k < n; k++)
        for (unsigned point = 0; point < 64; point++) {
            double cr = -2.0 + 3.0 * (point % 8) / 8, ci = -1.0 + 2.0 * (point / 8) / 8, x = 0, y = 0;
            unsigned i = 0;
            for (; i < 100 && x * x + y * y < 4; i++) {
                double t = x * x - y * y + cr;
                y = 2 * x * y + ci;
                x = t;
            }
            sum = sum * 0.5 + i + x / (1 + y * y);
        }
    return (u64)(long long)(sum * 1e9);
}

typedef float v4 __attribute__((vector_size(16)));

static v4 va[64], vb[64], vc[64];

static void fp_vector_prepare(size_t size)
{
    for (unsigned i = 0; i < 64; i++) {
        va[i] = (v4){ i, i + 1, i + 2, i + 3 };
        vb[i] = (v4){ 1, 0.5f, 0.25f, 2 };
        vc[i] = (v4){ 0 };
    }
}

static u64 fp_vector(u64 n, size_t size)
{
    v4 scale = { 0.5f, 0.25f, 0.5f, 0.75f };
    for (u64 k = 0; k < n; k++)
        for (unsigned i = 0; i < 64; i++) {
            vc[i] = vc[i] * scale + va[i] * vb[(i + k) % 64];
            va[i] = va[i] + scale - vc[i] * (v4){ 0.125f, 0.125f, 0.125f, 0.125f };
        }
    float sum = 0;
    for (unsigned i = 0; i < 64; i++)
        for (unsigned j = 0; j < 4; j++)
            sum += vc[i][j] + va[i][j];
    return (u64)(long long)(sum * 16);
}

/* ---- memory ------------------------------------------------------------------------------------------------------ */

/* A cycle through all 64-byte lines of `size` bytes in random order (Sattolo); a run goes n steps further along it. */
static u64 chase_at;
static void chase_prepare(size_t size)
{
    u64 (*line)[8] = (void *)kernel_memory, x = 88172645463325252;
    size_t n = size / 64;
    chase_at = 0;
    if (built == size)
        return;
    for (size_t k = 0; k < n; k++)
        line[k][0] = k;
    for (size_t k = n - 1; k; k--) {
        size_t j = next_random(&x) % k;
        u64 t = line[k][0];
        line[k][0] = line[j][0];
        line[j][0] = t;
    }
    built = size;
}

static u64 chase(u64 n, size_t size)
{
    u64 (*line)[8] = (void *)kernel_memory, at = chase_at, sum = 0;
    for (u64 k = 0; k < n; k++) {
        at = line[at][0];
        sum += at;
    }
    chase_at = at;
    return sum;
}

/* Source and destination of copies. */
static void copy_prepare(size_t size)
{
    u64 x = 88172645463325252;
    for (size_t k = 0; k < 3 * size; k++)
        kernel_memory[k] = (u8)next_random(&x);
    built = 0;
}

static u64 sum_of(const u8 *p, size_t size)
{
    u64 sum = 0;
    for (size_t k = 0; k < size / 8; k++)
        sum = sum * 3 + ((const u64 *)p)[k];
    return sum;
}

static __attribute__((noinline)) void copy_words(u64 *to, const u64 *from, size_t words)
{
    for (size_t k = 0; k < words; k++) {
        to[k] = from[k];
        __asm__ volatile("" : : : "memory");            /* a loop, not a call of memcpy */
    }
}

static u64 copy(u64 n, size_t size)
{
    for (u64 k = 0; k < n; k++) {
        kernel_memory[k % size] = (u8)k;
        copy_words((u64 *)(kernel_memory + 2 * size), (u64 *)kernel_memory, size / 8);
    }
    return sum_of(kernel_memory + 2 * size, size);
}

static u64 set(u64 n, size_t size)
{
    for (u64 k = 0; k < n; k++)
        for (size_t i = 0; i < size / 8; i++) {
            ((u64 *)kernel_memory)[i] = k;
            __asm__ volatile("" : : : "memory");
        }
    return sum_of(kernel_memory, size);
}

static u64 rep_movsb(u64 n, size_t size)
{
    for (u64 k = 0; k < n; k++) {
        void *to = kernel_memory + 2 * size, *from = kernel_memory;
        size_t count = size;
        kernel_memory[k % size] = (u8)k;
        __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(count) : : "memory");
    }
    return sum_of(kernel_memory + 2 * size, size);
}

static u64 rep_stosb(u64 n, size_t size)
{
    for (u64 k = 0; k < n; k++) {
        void *to = kernel_memory;
        size_t count = size;
        __asm__ volatile("rep stosb" : "+D"(to), "+c"(count) : "a"((u8)k) : "memory");
    }
    return sum_of(kernel_memory, size);
}

const struct kernel kernels[] = {
    { "integer", NULL, integer, 150000, 0 },
    { "dispatch", NULL, dispatch, 75, 0 },
    { "recursion", NULL, recursion, 110, 0 },
    { "sha256", NULL, sha256, 550, 0 },
    { "bytes", bytes_prepare, bytes, 66, 4096 },
    { "fp_scalar", NULL, fp_scalar, 64, 0 },
    { "fp_vector", fp_vector_prepare, fp_vector, 4000, 0 },
    { "chase_4K", chase_prepare, chase, 200000, 4 << 10 },
    { "chase_32K", chase_prepare, chase, 100000, 32 << 10 },
    { "chase_256K", chase_prepare, chase, 50000, 256 << 10 },
    { "chase_1M", chase_prepare, chase, 32768, 1 << 20 },
    { "chase_4M", chase_prepare, chase, 16384, 4 << 20 },
    { "chase_64M", chase_prepare, chase, 4096, 64 << 20 },
    { "memcpy_4K", copy_prepare, copy, 750, 4096 },
    { "memset_4K", copy_prepare, set, 1100, 4096 },
    { "rep_movsb_4K", copy_prepare, rep_movsb, 5000, 4096 },
    { "rep_stosb_4K", copy_prepare, rep_stosb, 5000, 4096 },
    { "rep_movsb_64", copy_prepare, rep_movsb, 36000, 64 },
};
const unsigned nr_kernels = sizeof kernels / sizeof *kernels;
