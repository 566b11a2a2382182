/*
 * printf: integers, strings, pointers. One line goes out in one piece, whatever other vCPUs print.
 */
#include <guest.h>

#define LINE 512

struct out {
    char *buffer;
    size_t size, length; /* length: what would be there if there were room */
};

static void put(struct out *o, char c)
{
    if (o->length + 1 < o->size)
        o->buffer[o->length] = c;
    o->length++;
}

static void pad(struct out *o, char c, int n)
{
    while (n-- > 0)
        put(o, c);
}

struct spec {
    bool left, plus, space, zero, alt, upper;
    int width, precision; /* precision < 0: none */
};

static void put_text(struct out *o, const struct spec *s, const char *text, size_t n)
{
    pad(o, ' ', s->left ? 0 : s->width - (int)n);
    for (size_t i = 0; i < n; i++)
        put(o, text[i]);
    pad(o, ' ', s->left ? s->width - (int)n : 0);
}

static void put_number(struct out *o, const struct spec *s, u64 value, u32 base, bool negative)
{
    const char *digits = s->upper ? "0123456789ABCDEF" : "0123456789abcdef";
    char number[24], prefix[3] = "";
    int n = 0, zeros, prefix_n = 0;

    if (negative || s->plus || s->space)
        prefix[prefix_n++] = negative ? '-' : s->plus ? '+' : ' ';
    if (s->alt && base == 16 && value) {
        prefix[prefix_n++] = '0';
        prefix[prefix_n++] = s->upper ? 'X' : 'x';
    }
    for (; value; value /= base)
        number[n++] = digits[value % base];
    zeros = (s->precision < 0 ? 1 : s->precision) - n;
    if (s->alt && base == 8 && zeros < 1)
        zeros = 1;
    if (s->zero && !s->left && s->precision < 0)
        zeros = MAX(zeros, s->width - prefix_n - n);
    zeros = MAX(zeros, 0);
    pad(o, ' ', s->left ? 0 : s->width - prefix_n - zeros - n);
    for (int i = 0; i < prefix_n; i++)
        put(o, prefix[i]);
    pad(o, '0', zeros);
    for (int i = n; i--;)
        put(o, number[i]);
    pad(o, ' ', s->left ? s->width - prefix_n - zeros - n : 0);
}

static int number(const char **format, va_list *args)
{
    int n = 0;

    if (**format == '*') {
        (*format)++;
        return va_arg(*args, int);
    }
    while (**format >= '0' && **format <= '9')
        n = n * 10 + *(*format)++ - '0';
    return n;
}

/* An integer argument of the length that h, l, z... say, as 64 bits. */
static u64 integer(va_list *args, int size, bool is_signed)
{
    switch (size) {
    case -2: return is_signed ? (u64)(s8)va_arg(*args, int) : (u8)va_arg(*args, int);
    case -1: return is_signed ? (u64)(s16)va_arg(*args, int) : (u16)va_arg(*args, int);
    case 0: return is_signed ? (u64)va_arg(*args, int) : va_arg(*args, u32);
    default: return va_arg(*args, u64);
    }
}

int vsnprintf(char *buffer, size_t size, const char *format, va_list ap)
{
    struct out o = {buffer, size, 0};
    va_list args;

    va_copy(args, ap);
    for (; *format; format++) {
        struct spec s = {.precision = -1};
        int length = 0;
        const char *text;
        char c;
        s64 value;

        if (*format != '%') {
            put(&o, *format);
            continue;
        }
        for (format++;; format++) {
            if (*format == '-') s.left = true;
            else if (*format == '+') s.plus = true;
            else if (*format == ' ') s.space = true;
            else if (*format == '0') s.zero = true;
            else if (*format == '#') s.alt = true;
            else break;
        }
        s.width = number(&format, &args);
        if (s.width < 0) {
            s.left = true;
            s.width = -s.width;
        }
        if (*format == '.') {
            format++;
            s.precision = number(&format, &args);
        }
        for (;; format++) {
            if (*format == 'h') length--;
            else if (*format == 'l' || *format == 'z' || *format == 't' || *format == 'j') length++;
            else break;
        }
        s.upper = *format == 'X';
        switch (*format) {
        case 'd': case 'i':
            value = integer(&args, length, true);
            put_number(&o, &s, value < 0 ? -(u64)value : (u64)value, 10, value < 0);
            break;
        case 'u': case 'x': case 'X': case 'o':
            s.plus = s.space = false;
            put_number(&o, &s, integer(&args, length, false), *format == 'u' ? 10 : *format == 'o' ? 8 : 16, false);
            break;
        case 'p':
            s.alt = true;
            put_number(&o, &s, (u64)va_arg(args, void *), 16, false);
            break;
        case 's':
            text = va_arg(args, const char *);
            if (!text)
                text = "(null)";
            put_text(&o, &s, text, strnlen(text, s.precision < 0 ? SIZE_MAX : (size_t)s.precision));
            break;
        case 'c':
            c = va_arg(args, int);
            put_text(&o, &s, &c, 1);
            break;
        case '%':
            put(&o, '%');
            break;
        default: /* unknown: shown as it stands */
            put(&o, '%');
            format--;
        }
    }
    if (size)
        buffer[MIN(o.length, size - 1)] = 0;
    va_end(args);
    return o.length;
}

int snprintf(char *buffer, size_t size, const char *format, ...)
{
    va_list args;
    int n;

    va_start(args, format);
    n = vsnprintf(buffer, size, format, args);
    va_end(args);
    return n;
}

int vprintf(const char *format, va_list args)
{
    char line[LINE], *text = line;
    int n = vsnprintf(line, sizeof(line), format, args);

    if (n >= LINE) { /* long ones from the heap; without room there, the beginning */
        text = malloc(n + 1);
        if (text)
            vsnprintf(text, n + 1, format, args);
    }
    console_write(text ? text : line, text ? n : LINE - 1);
    if (text != line)
        free(text);
    return n;
}

int printf(const char *format, ...)
{
    va_list args;
    int n;

    va_start(args, format);
    n = vprintf(format, args);
    va_end(args);
    return n;
}

int putchar(int c)
{
    char byte = c;

    console_write(&byte, 1);
    return c;
}

int puts(const char *s)
{
    return printf("%s\n", s);
}
