/* What the interpreter's speed is measured with (bench_x86.py): integer work of the kinds that programs do.
 *
 * Compiled twice by the benchmark: as a freestanding image for the bare machine (GUEST) and as a shared library for the host, with the same
 * options. kernel(number, n) does kernel `number` n times over and returns a result that both must agree on.
 */
typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long u64;
#define KERNEL static __attribute__((noinline)) u64

#ifdef GUEST
__asm__(".section .text.start\n call kernel\n int3\n .text\n");
#endif

KERNEL mix(u64 n)                       /* shifts, multiplication, division, unpredictable branches */
{
    u64 a = n * 77 + 1, b = 12345;
    for (u64 i = 0; i < n; i++) {
        a ^= a << 13, a ^= a >> 7, a ^= a << 17;
        b += a * 3;
        b = b & 1 ? b >> 3 | b << 61 : b - i;
        a += b % 7 + (b >> (i & 15));
    }
    return a ^ b;
}

KERNEL dispatch(u64 n)                  /* a bytecode interpreter */
{
    static volatile const u8 program[] = { 0, 1, 2, 3, 1, 0, 4, 2, 5, 1, 3, 6 };
    u64 x = 1, y = 2, sum = 0;
    for (u64 pc = 0;;)
        switch (program[pc++]) {
        case 0: x += y; break;
        case 1: y ^= x << 1; break;
        case 2: sum += x; break;
        case 3: x -= sum; break;
        case 4: y = ~y; break;
        case 5: sum ^= y; break;
        case 6:
            pc = 0;
            if (!n--)
                return sum;
        }
}

KERNEL fib(u64 n) { return n < 2 ? n : fib(n - 1) + fib(n - 2); }       /* calls and returns */

static inline u32 ror(u32 x, int n) { return x >> n | x << (32 - n); }

KERNEL compress(u64 n)                  /* rounds like those of SHA-256 */
{
    u32 h[8] = { 1, 2, 3, 4, 5, 6, 7, 8 }, w[64];
    for (u64 block = 0; block < n; block++) {
        for (u32 i = 0; i < 16; i++)
            w[i] = (u32)block * 31 + i;
        for (u32 i = 16; i < 64; i++)
            w[i] = w[i - 16] + (ror(w[i - 15], 7) ^ ror(w[i - 15], 18) ^ w[i - 15] >> 3) + w[i - 7] + (ror(w[i - 2], 17) ^ ror(w[i - 2], 19) ^ w[i - 2] >> 10);
        u32 a = h[0], b = h[1], c = h[2], d = h[3], e = h[4], f = h[5], g = h[6], k = h[7];
        for (u32 i = 0; i < 64; i++) {
            u32 t = k + (ror(e, 6) ^ ror(e, 11) ^ ror(e, 25)) + ((e & f) ^ (~e & g)) + i * 0x9e3779b9 + w[i];
            k = g, g = f, f = e, e = d + t, d = c;
            t += (ror(a, 2) ^ ror(a, 13) ^ ror(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
            c = b, b = a, a = t;
        }
        h[0] += a, h[1] += b, h[2] += c, h[3] += d, h[4] += e, h[5] += f, h[6] += g, h[7] += k;
    }
    return (u64)h[0] << 32 | h[7];
}

KERNEL bytes(u64 n)                     /* strings, a byte at a time */
{
    static u8 text[4097], upper[4096];
    u64 hash = 0;
    for (u32 i = 0; i < 4096; i++)
        text[i] = (u8)(i % 97 + 1);
    for (; n; n--) {
        u64 length = 0;
        for (const u8 *p = text; *p; p++)
            length++;
        for (u64 i = 0; i < length; i++)
            upper[i] = text[i] >= 'a' && text[i] <= 'z' ? text[i] - 32 : text[i];
        for (u64 i = 0; i < length; i++)
            hash = hash * 31 + upper[i];
        text[n % 4096] = (u8)(hash | 1);
    }
    return hash;
}

u64 kernel(u64 number, u64 n)
{
    switch (number) {
    case 0: return mix(n);
    case 1: return dispatch(n);
    case 2: return fib(n);
    case 3: return compress(n);
    default: return bytes(n);
    }
}
