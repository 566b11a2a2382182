/* Serial output, formatted printing, the end, memory functions. */
#include <pc/pc.h>

void serial_init(void)
{
    outb(COM1 + 1, 0);
    outb(COM1 + 3, 0x80);               /* divisor 1 */
    outb(COM1 + 0, 1);
    outb(COM1 + 1, 0);
    outb(COM1 + 3, 3);
    outb(COM1 + 2, 7);
    outb(COM1 + 4, 3);
}

void putch(char c)
{
    if (c == '\n')
        putch('\r');
    while (!(inb(COM1 + 5) & 0x20))
        pause();
    outb(COM1, (u8)c);
}

static void put_number(u64 x, unsigned base, unsigned width, char pad, bool negative)
{
    char digits[24];
    unsigned n = 0;
    do {
        u64 rest = 0, quotient = 0;
        for (int bit = 63; bit >= 0; bit--) {   /* no 64-bit division in 32-bit code without libgcc */
            rest = rest << 1 | (x >> bit & 1);
            if (rest >= base) {
                rest -= base;
                quotient |= 1ull << bit;
            }
        }
        digits[n++] = "0123456789abcdef"[rest];
        x = quotient;
    } while (x);
    if (negative)
        digits[n++] = '-';
    while (width > n) {
        putch(pad);
        width--;
    }
    while (n)
        putch(digits[--n]);
}

void print(const char *format, ...)
{
    va_list ap;
    va_start(ap, format);
    for (const char *p = format; *p; p++) {
        if (*p != '%') {
            putch(*p);
            continue;
        }
        char pad = *++p == '0' ? '0' : ' ';
        unsigned width = 0, longs = 0;
        for (; *p >= '0' && *p <= '9'; p++)
            width = width * 10 + (unsigned)(*p - '0');
        for (; *p == 'l'; p++)
            longs++;
        if (*p == 'c') {
            putch((char)va_arg(ap, int));
        } else if (*p == 's') {
            const char *s = va_arg(ap, const char *);
            unsigned n = (unsigned)strlen(s);
            while (*s)
                putch(*s++);
            for (; n < width; n++)
                putch(' ');
        } else if (*p == 'd' || *p == 'u' || *p == 'x') {
            u64 x = longs > 1 ? va_arg(ap, unsigned long long) : longs ? va_arg(ap, unsigned long) : va_arg(ap, unsigned);
            long long s = longs > 1 ? (long long)x : longs ? (long)x : (int)x;
            bool negative = *p == 'd' && s < 0;
            put_number(negative ? 0 - (u64)s : x, *p == 'x' ? 16 : 10, width, pad, negative);
        } else {
            putch(*p);
        }
    }
    va_end(ap);
}

void pc_exit(u32 code)
{
    outl(PORT_EXIT, code);
    for (;;) {                          /* no such port */
        cli();
        hlt();
    }
}

void pc_failed(const char *file, int line, const char *what)
{
    print("%s:%d: failed: %s\n", file, line, what);
    pc_exit(1);
}

void *memset(void *p, int c, size_t n)
{
    void *to = p;
    __asm__ volatile("rep stosb" : "+D"(to), "+c"(n) : "a"(c) : "memory");
    return p;
}

void *memcpy(void *to, const void *from, size_t n)
{
    void *d = to;
    __asm__ volatile("rep movsb" : "+D"(d), "+S"(from), "+c"(n) : : "memory");
    return to;
}

void *memmove(void *to, const void *from, size_t n)
{
    if ((uintptr_t)to - (uintptr_t)from >= n)
        return memcpy(to, from, n);
    u8 *d = (u8 *)to + n - 1;
    const u8 *s = (const u8 *)from + n - 1;
    __asm__ volatile("std; rep movsb; cld" : "+D"(d), "+S"(s), "+c"(n) : : "memory");
    return to;
}

int memcmp(const void *a, const void *b, size_t n)
{
    const u8 *p = a, *q = b;
    for (; n; n--, p++, q++)
        if (*p != *q)
            return *p < *q ? -1 : 1;
    return 0;
}

size_t strlen(const char *s)
{
    size_t n = 0;
    while (s[n])
        n++;
    return n;
}
