/* The slow roads of mem.h: segment checks, TLB misses, page-crossing accesses, alignment checks, data breakpoints, the store hook.
 *
 * Owns: the order of checks of a data access: segment or canonical address (#GP, #SS), pages (#PF), alignment (#AC), as in vol. 3,
 * table 6-2. Called by: mem.h. Locks: x86_cpu.bus_lock, leaf, around locked accesses that cross a page: atomic towards each other,
 * not towards plain accesses of other CPUs.
 */
#include "x86/mem.h"

#include "machine/codemap.h"
#include "machine/frame.h"

static const struct x86_fault NO_FAULT = { 0, 0 };

static inline u64 lin_mask(const struct x86_cpu *c, unsigned seg)
{
    return (seg == X86_SYS_SEG ? c->long_mode : c->mode == 64) ? ~0ul : 0xffffffffu;
}

static _Noreturn void segment_fault(struct x86_cpu *c, unsigned seg)
{
    x86_raise_error(c, seg == X86_SS ? X86_SS_EXC : X86_GP, 0);
}

/* Vol. 3, 5.3-5.5 and 3.3.7.1. Type checks are of protected mode only: real mode keeps limits (and whatever was loaded before). */
static inline u64 linear(struct x86_cpu *c, unsigned seg, u64 off, unsigned size, bool write)
{
    u64 last = off + size - 1;
    if (seg == X86_SYS_SEG || c->mode == 64) {
        u64 lin = seg == X86_SYS_SEG ? off & lin_mask(c, seg) : c->lin_base[seg] + off;
        if (c->long_mode && unlikely(!va_canonical(lin) || !va_canonical(lin + size - 1)))
            segment_fault(c, seg);
        return lin;
    }
    const struct x86_seg *s = &c->seg[seg];
    unsigned type = x86_attr_type(s->attr);
    bool code = type & 8;
    if (!c->real && unlikely(s->attr & X86_ATTR_UNUSABLE || (write ? code || !(type & 2) : code && !(type & 2))))
        segment_fault(c, seg);
    if (unlikely(!code && type & 4)) {                  /* expand-down: above the limit */
        if (off <= s->limit || last > (s->attr & X86_ATTR_DB ? 0xffffffffu : 0xffffu))
            segment_fault(c, seg);
    } else if (unlikely(last > s->limit)) {
        segment_fault(c, seg);
    }
    return (u32)(s->base + off);
}

u64 x86_linear(struct x86_cpu *c, unsigned seg, u64 off, unsigned size, bool write)
{
    return linear(c, seg, off, size, write);
}

/* ---- pages ------------------------------------------------------------------------------------------------------- */

static inline u8 *host_page(struct x86_cpu *c, unsigned seg, u64 lin, bool write, struct x86_fault *f)
{
    u32 set = seg == X86_SYS_SEG ? 0 : c->tlb_set;
    const struct tlb_entry *e = tlb_slot(c->tlb, set, lin);
    if (likely((write ? e->write_tag : e->read_tag) == tlb_tag(c->tlb, lin)))
        return e->page;
    u32 now = c->tlb_set;
    c->tlb_set = set;                   /* the CPU's own accesses are supervisor ones at any CPL */
    u8 *page = c->ops->page(c, lin, write ? MMU_WRITE : MMU_READ, f);
    c->tlb_set = now;
    return page;
}

/* What is strict about an access whose pages are there: #AC, then breakpoints and watchpoints. */
static void strict_access(struct x86_cpu *c, unsigned seg, u64 lin, unsigned size, bool write)
{
    if (c->strict & X86_STRICT_ALIGN && seg != X86_SYS_SEG && size <= 8 && lin & (size - 1))
        x86_raise_error(c, X86_AC_EXC, 0);
    if (c->strict & X86_STRICT_BREAKPOINT)
        x86_debug_access(c, lin, size, write ? X86_DR_WRITE : X86_DR_ACCESS);
    if (c->strict & X86_STRICT_DEBUGGER && c->ops->watch)
        c->ops->watch(c, lin, size, write);
}

/* ---- stores into translated code --------------------------------------------------------------------------------- */

struct span { u8 *part[2]; unsigned n; u64 lin; };      /* n bytes at part[0], the rest at part[1] */

/* A store to s comes. What is translated there is told of it behind the store, before the next instruction or the next store of this one
 * (x86_wrote_code): told before, another CPU's translator might read the old bytes between the two (machine/codemap.h, rule 2). */
static void will_write(struct x86_cpu *c, const struct span *s, unsigned size)
{
    bool first = codemap_has(c->codemap, s->part[0]), second = s->n < size && codemap_has(c->codemap, s->part[1]);
    if (likely(!first && !second))
        return;                         /* a first claim waits until this instruction is over (rule 3) */
    x86_wrote_code(c);                  /* of the stores before: they are done */
    codemap_write_begin(c->codemap);
    c->wrote[0].p = s->part[0], c->wrote[0].n = first ? s->n : 0;
    c->wrote[1].p = s->part[1], c->wrote[1].n = second ? size - s->n : 0;
    c->slow |= X86_SLOW_WROTE;
}

void x86_wrote_code(struct x86_cpu *c)
{
    bool changed[2];
    if (!(c->slow & X86_SLOW_WROTE))
        return;
    smp_mb();                           /* the store, then the look: the translator claims, then reads */
    for (unsigned k = 0; k < 2; k++)
        changed[k] = c->wrote[k].n && codemap_wrote(c->codemap, c->wrote[k].p, c->wrote[k].n);
    codemap_write_end(c->codemap);
    for (unsigned k = 0; k < 2; k++)
        if (changed[k] && c->ops->code_changed)
            c->ops->code_changed(c, c->wrote[k].p);
    c->wrote[0].n = c->wrote[1].n = 0;
    c->slow &= ~X86_SLOW_WROTE;
}

/* The host memory of a whole access, or the first fault of it in *f: part[0] NULL. Raises for the segment only. */
static inline struct span span_find(struct x86_cpu *c, unsigned seg, u64 off, unsigned size, bool write, struct x86_fault *f)
{
    struct span s = { .lin = linear(c, seg, off, size, write) };
    u64 in_page = s.lin % PAGE_SIZE;
    u8 *page = host_page(c, seg, s.lin, write, f);
    s.n = in_page + size > PAGE_SIZE ? PAGE_SIZE - in_page : size;
    if (unlikely(!page))
        return s;
    if (unlikely(s.n < size)) {
        s.part[1] = host_page(c, seg, (s.lin + s.n) & lin_mask(c, seg), write, f);
        if (!s.part[1])
            return s;
        /* The second lookup may have used the first one's TLB entry, never its page. */
    }
    s.part[0] = page + in_page;
    if (write)
        will_write(c, &s, size);
    return s;
}

/* A page of the access is a device's (f->mmio), else it is a page fault. All of it is checked before any of it is done: in pieces of 8 bytes, or,
 * where it crosses into another page, byte by byte. */
static void device_access(struct x86_cpu *c, unsigned seg, const struct span *s, unsigned size, bool write, const struct x86_fault *f, void *data)
{
    u8 *bytes = data, *page[2] = { NULL, NULL };
    struct x86_fault at[2] = { *f, *f };
    unsigned in_first = PAGE_SIZE - s->lin % PAGE_SIZE;
    bool crosses = in_first < size;
    if (!f->mmio)
        x86_raise_page_fault(c, f);
    for (unsigned k = 0; crosses && k < 2; k++) {
        page[k] = host_page(c, seg, k ? (s->lin + in_first) & lin_mask(c, seg) : s->lin, write, &at[k]);
        if (!page[k] && !at[k].mmio)
            x86_raise_page_fault(c, &at[k]);
    }
    if (c->strict)
        strict_access(c, seg, s->lin, size, write);
    for (unsigned done = 0, step; done < size; done += step) {
        unsigned k = done >= in_first;
        u64 in_page = (s->lin + done) % PAGE_SIZE, value = 0;
        step = crosses ? 1 : size - done < 8 ? size - done : 8;
        if (page[k]) {
            if (write) {
                will_write(c, &(struct span){ .part = { page[k] + in_page }, .n = 1 }, 1);
                page[k][in_page] = bytes[done];
            } else {
                bytes[done] = page[k][in_page];
            }
            continue;
        }
        if (write)
            memcpy(&value, bytes + done, step);
        x86_wrote_code(c);
        value = c->ops->mmio(c, at[k].pa + in_page, step, write, value);
        if (!write)
            memcpy(bytes + done, &value, step);
    }
}

static void span_read(const struct span *s, void *out, unsigned size)
{
    memcpy(out, s->part[0], s->n);
    if (s->n < size)
        memcpy((u8 *)out + s->n, s->part[1], size - s->n);
}

static void span_write(const struct span *s, const void *in, unsigned size)
{
    memcpy(s->part[0], in, s->n);
    if (s->n < size)
        memcpy(s->part[1], (const u8 *)in + s->n, size - s->n);
}

/* As x86_host_load. */
static inline void host_store(u8 *p, unsigned size, u64 value)
{
    switch (size) {
    case 1: *(volatile u8 *)p = (u8)value; return;
    case 2: memcpy(p, &(u16){ (u16)value }, 2); return;
    case 4: memcpy(p, &(u32){ (u32)value }, 4); return;
    case 8: memcpy(p, &value, 8); return;
    }
    memcpy(p, &value, size);
}

/* ---- loads and stores -------------------------------------------------------------------------------------------- */

/* Apart, so that what is quick saves no registers for what is not. */
static __attribute__((noinline)) u64 load_any(struct x86_cpu *c, unsigned seg, u64 off, unsigned size)
{
    struct x86_fault f;
    struct span s = span_find(c, seg, off, size, false, &f);
    u64 value = 0;
    if (unlikely(!s.part[0])) {
        device_access(c, seg, &s, size, false, &f, &value);
        return value;
    }
    if (unlikely(c->strict))
        strict_access(c, seg, s.lin, size, false);
    if (likely(s.n == size))
        return x86_host_load(s.part[0], size);
    span_read(&s, &value, size);
    return value;
}

u64 x86_load_slow(struct x86_cpu *c, unsigned seg, u64 off, unsigned size)
{
    const u8 *quick = x86_quick_ptr(c, seg, off, size, false);
    return likely(quick != NULL) ? x86_host_load(quick, size) : load_any(c, seg, off, size);
}

static __attribute__((noinline)) void store_any(struct x86_cpu *c, unsigned seg, u64 off, unsigned size, u64 value)
{
    struct x86_fault f = NO_FAULT;
    struct span s = span_find(c, seg, off, size, true, &f);
    if (unlikely(!s.part[0])) {
        u64 old = 0;
        if (s.n != size || !c->ops->store || !c->ops->store(c, &f, size, false, &old, value))
            device_access(c, seg, &s, size, true, &f, &value);
        else if (c->strict)
            strict_access(c, seg, s.lin, size, true);
        return;
    }
    if (unlikely(c->strict))
        strict_access(c, seg, s.lin, size, true);
    if (likely(s.n == size))
        host_store(s.part[0], size, value);
    else
        span_write(&s, &value, size);
}

void x86_store_slow(struct x86_cpu *c, unsigned seg, u64 off, unsigned size, u64 value)
{
    u8 *quick = x86_quick_ptr(c, seg, off, size, true);
    if (likely(quick != NULL))
        host_store(quick, size, value);
    else
        store_any(c, seg, off, size, value);
}

void x86_load_bytes(struct x86_cpu *c, unsigned seg, u64 off, void *out, unsigned n)
{
    struct x86_fault f;
    struct span s = span_find(c, seg, off, n, false, &f);
    if (unlikely(!s.part[0])) {
        device_access(c, seg, &s, n, false, &f, out);
        return;
    }
    if (unlikely(c->strict))
        strict_access(c, seg, s.lin, n, false);
    span_read(&s, out, n);
}

void x86_store_bytes(struct x86_cpu *c, unsigned seg, u64 off, const void *in, unsigned n)
{
    struct x86_fault f;
    struct span s = span_find(c, seg, off, n, true, &f);
    if (unlikely(!s.part[0])) {
        device_access(c, seg, &s, n, true, &f, (void *)in);
        return;
    }
    if (unlikely(c->strict))
        strict_access(c, seg, s.lin, n, true);
    span_write(&s, in, n);
}

static __attribute__((noinline)) void probe_any(struct x86_cpu *c, unsigned seg, u64 off, unsigned n)
{
    struct x86_fault f;
    struct span s = span_find(c, seg, off, n, true, &f);
    if (!s.part[0] && !f.mmio)
        x86_raise_page_fault(c, &f);
}

void x86_probe_write(struct x86_cpu *c, unsigned seg, u64 off, unsigned n)
{
    if (unlikely(!x86_quick_ptr(c, seg, off, n, true)))
        probe_any(c, seg, off, n);
}

/* ---- read-modify-write ------------------------------------------------------------------------------------------- */

u8 *x86_rmw_ptr(struct x86_cpu *c, unsigned seg, u64 off, unsigned size)
{
    if (likely(c->mode == 64)) {
        u8 *p = x86_inline_ptr(c, c->lin_base[seg] + off, size, true);
        if (likely(p != NULL))
            return p;
    }
    struct x86_fault f;
    struct span s = span_find(c, seg, off, size, true, &f);
    if (unlikely(!s.part[0])) {
        if (f.mmio || (s.n == size && c->ops->store))
            return NULL;                /* x86_cmpxchg_slow tries the hook, or asks the device */
        x86_raise_page_fault(c, &f);
    }
    if (s.n != size)
        return NULL;
    if (unlikely(c->strict))
        strict_access(c, seg, s.lin, size, true);
    return s.part[0];
}

bool x86_is_device(struct x86_cpu *c, unsigned seg, u64 off, unsigned size)
{
    struct x86_fault f = NO_FAULT;
    return c->ops->mmio && !span_find(c, seg, off, size, true, &f).part[0] && f.mmio;
}

__attribute__((no_sanitize("alignment"))) static bool host_cmpxchg(u8 *p, unsigned size, u64 *old, u64 value)
{
    u8 b = (u8)*old; u16 w = (u16)*old; u32 d = (u32)*old;
    bool done;
    switch (size) {
    case 1: done = cmpxchg(p, &b, (u8)value); *old = b; return done;
    case 2: done = cmpxchg((u16 *)p, &w, (u16)value); *old = w; return done;
    case 4: done = cmpxchg((u32 *)p, &d, (u32)value); *old = d; return done;
    default: return cmpxchg((u64 *)p, old, value);
    }
}

/* The hook compares with what the caller saw; so does this: the caller loads first, then comes here until it holds. */
bool x86_cmpxchg_slow(struct x86_cpu *c, unsigned seg, u64 off, unsigned size, u64 *old, u64 value)
{
    struct x86_fault f = NO_FAULT;
    struct span s = span_find(c, seg, off, size, true, &f);
    u64 expected = *old;
    if (!s.part[0]) {
        if (f.mmio) {
            u64 found = 0;
            device_access(c, seg, &s, size, false, &f, &found);
            if (found == expected)
                device_access(c, seg, &s, size, true, &f, &value);
            *old = found;
            return found == expected;
        }
        if (s.n != size || !c->ops->store || !c->ops->store(c, &f, size, true, old, value))
            x86_raise_page_fault(c, &f);
        if (c->strict)
            strict_access(c, seg, s.lin, size, true);
        return *old == expected;
    }
    if (c->strict)
        strict_access(c, seg, s.lin, size, true);
    if (s.n == size)
        return host_cmpxchg(s.part[0], size, old, value);

    u64 found = 0;
    if (c->bus_lock)
        spin_lock(c->bus_lock);
    span_read(&s, &found, size);
    if (found == expected)
        span_write(&s, &value, size);
    if (c->bus_lock)
        spin_unlock(c->bus_lock);
    *old = found;
    return found == expected;
}
