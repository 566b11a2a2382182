/* The memory that translated code lives in, and the ways into and out of it.
 *
 * Owns: the cache's two views (one memfd, mapped executable and writable, never both), the routines at its start: enter, leave, and the
 * second-level TLB lookups. Called by: block.c, run.c. No locks.
 */
#define _GNU_SOURCE
#include "bt/emit.h"            /* before unistd.h, which has an F_LOCK of its own */

#include <sys/mman.h>
#include <unistd.h>

#if defined(__x86_64__)

static bool map_views(struct bt *t)
{
    int fd = memfd_create("xenlike-bt", MFD_CLOEXEC);
    if (fd < 0)
        return false;
    if (!ftruncate(fd, CACHE_BYTES)) {
        t->rw = mmap(NULL, CACHE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
        t->rx = mmap(NULL, CACHE_BYTES, PROT_READ | PROT_EXEC, MAP_SHARED | MAP_NORESERVE, fd, 0);
    }
    close(fd);
    if (t->rw == MAP_FAILED)
        t->rw = NULL;
    if (t->rx == MAP_FAILED)
        t->rx = NULL;
    return t->rw && t->rx;
}

bool bt_cache_possible(void)
{
    int fd = memfd_create("xenlike-bt", MFD_CLOEXEC);
    void *p = fd >= 0 && !ftruncate(fd, PAGE_SIZE) ? mmap(NULL, PAGE_SIZE, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0) : MAP_FAILED;
    if (p != MAP_FAILED)
        munmap(p, PAGE_SIZE);
    if (fd >= 0)
        close(fd);
    return p != MAP_FAILED;
}

/* Guest registers that live in the host's: number n of both, but rsp. */
static bool same_register(unsigned n) { return n != R_SP && n < R_13; }

static void e_state(struct emit *e, bool store, unsigned reg, unsigned base, u32 disp)  /* mov between reg and [base + disp32] */
{
    e8(e, 0x48 | (reg >> 3) << 2 | base >> 3), e8(e, store ? 0x89 : 0x8b), e8(e, 0x80 | (reg & 7) << 3 | (base & 7));
    if ((base & 7) == 4)
        e8(e, 0x24);
    e32(e, disp);
}
static void e_xmm(struct emit *e, bool store, unsigned xmm, unsigned base, u32 disp)    /* movups */
{
    e8(e, 0x40 | (xmm >> 3) << 2 | base >> 3), e8(e, 0x0f), e8(e, store ? 0x11 : 0x10);
    e8(e, 0x80 | (xmm & 7) << 3 | (base & 7)), e32(e, disp);
}
static void e_mxcsr_gs(struct emit *e, bool store, u32 disp)
{
    e8(e, 0x65), e8(e, 0x0f), e8(e, 0xae), e8(e, store ? 0x1c : 0x14), e8(e, 0x25), e32(e, disp);
}

#define R(n) ((u32)offsetof(struct x86_cpu, r) + 8 * (n))
static const u8 SAVED[6] = { R_BX, R_BP, R_12, R_13, R_14, R_15 };

static void e_fx(struct emit *e, unsigned op, unsigned base)    /* fxsave64 (0), fxrstor64 (1) [base + fx] */
{
    e8(e, 0x48 | base >> 3), e8(e, 0x0f), e8(e, 0xae), e8(e, 0x80 | op << 3 | (base & 7)), e32(e, offsetof(struct x86_cpu, fx));
}
static void e_fcw(struct emit *e, unsigned op)          /* fldcw (5), fnstcw (7) */
{
    e8(e, 0x65), e8(e, 0xd9), e8(e, op << 3 | 4), e8(e, 0x25), e32(e, GS(host_fcw));
}
/* The jump that is taken if the guest's MXCSR is the host's. rax is used. */
static u32 e_is_host_mxcsr(struct emit *e, unsigned base)
{
    e_gs(e, false, 0x8b, R_AX, GS(host_mxcsr));
    if (base >= 8)
        e8(e, 0x41);
    e8(e, 0x3b), e8(e, 0x80 | (base & 7)), e32(e, offsetof(struct x86_cpu, fx.mxcsr));          /* cmp eax, [base + mxcsr] */
    return e_jcc_later(e, 4);
}
/* xmm registers and MXCSR; what loads it finds the host's, and uses rax. */
static void e_vectors(struct emit *e, bool store, unsigned base)
{
    u32 same = 0;
    for (unsigned n = 0; n < 16; n++)
        e_xmm(e, store, n, base, (u32)offsetof(struct x86_cpu, fx.xmm) + 16 * n);
    if (!store)                         /* ldmxcsr costs more than a guess */
        same = e_is_host_mxcsr(e, base);
    if (base >= 8)
        e8(e, 0x41);
    e8(e, 0x0f), e8(e, 0xae), e8(e, 0x80 | (store ? 3 : 2) << 3 | (base & 7));         /* stmxcsr, ldmxcsr */
    e32(e, offsetof(struct x86_cpu, fx.mxcsr));
    if (same)
        e_patch(e, same, e->at);
}

/* Floating point, if any block has it (kernels mostly do not): all of it if the x87 was live when code was left, else the vectors, which
 * need not be stored if no block that was run since has changed them. Stored, MXCSR is the host's. rax and rcx are used. */
static void e_floating(struct emit *e, bool store, unsigned base)
{
    static const u8 TEST_ECX[] = { 0x85, 0xc9 };
    u32 same = 0;
    e_load(e, R_CX, GS(uses_fp));
    e_bytes(e, TEST_ECX, 2);
    u32 none = e_jcc_later(e, 4);
    e_load(e, R_CX, GS(x87_out));
    u32 live = e_jrcxz(e), out = e_jmp_later(e), done;
    e_here(e, live);
    if (store) {
        e_fx(e, 0, base);
        e8(e, 0xdb), e8(e, 0xe3);               /* fninit */
        e_fcw(e, 5);
    } else {
        e_fcw(e, 7);
        e_fx(e, 1, base);
    }
    done = e_jmp_later(e);
    e_patch(e, out, e->at);
    if (store) {
        e_load(e, R_CX, GS(vectors));
        e_bytes(e, TEST_ECX, 2);
        same = e_jcc_later(e, 4);
    }
    e_vectors(e, store, base);
    e_patch(e, done, e->at);
    if (store) {
        e_patch(e, same, e->at);
        same = e_is_host_mxcsr(e, base);
        e_mxcsr_gs(e, false, GS(host_mxcsr));
        e_patch(e, same, e->at);
    }
    e_patch(e, none, e->at);
}

/* Called in a block's first x87 instruction if x87_out. r14 is used; no flag changes. */
static void emit_x87_in(struct emit *e)
{
    e_load(e, SCRATCH, GS(cpu));
    e_vectors(e, true, SCRATCH);
    e_fcw(e, 7);
    e_fx(e, 1, SCRATCH);
    e_store_imm32(e, GS(x87_out), 0);
    e8(e, 0xc3);
}

/* rdi: the CPU. Loads the guest's state and goes to bt->entry. */
static void emit_restore(struct emit *e)
{
    e_floating(e, false, R_DI);
    for (unsigned n = 0; n < 3; n++) {
        e_state(e, false, R_AX, R_DI, R(13 + n));
        e_store(e, R_AX, GS(hi) + 8 * n);
    }
    e_state(e, false, R_CX, R_DI, (u32)offsetof(struct x86_cpu, rflags));
    /* mov ah, cl; shr ecx, 11; and ecx, 1; mov al, cl; add al, 7fh: OF; sahf: the others */
    e_bytes(e, (const u8[]){ 0x88, 0xcc, 0xc1, 0xe9, 0x0b, 0x83, 0xe1, 0x01, 0x88, 0xc8, 0x04, 0x7f, 0x9e }, 13);
    e_state(e, false, GUEST_SP, R_DI, R(R_SP));
    for (unsigned n = 0; n < R_13; n++)
        if (same_register(n) && n != R_DI)
            e_state(e, false, n, R_DI, R(n));
    e_state(e, false, R_DI, R_DI, R(R_DI));
    e_load(e, SCRATCH, GS(slide_now));
    e_mov_imm(e, SCRATCH2, ~0ul);               /* nothing is carried (translate.h) */
    e_jmp_gs(e, GS(entry));
}

/* void enter(struct x86_cpu *rdi, u64 entry rsi). GS is set. Returns the offset of the part that loads the state. */
static u32 emit_enter(struct emit *e)
{
    for (unsigned n = 0; n < 6; n++) {
        if (SAVED[n] >= 8)
            e8(e, 0x41);
        e8(e, 0x50 | (SAVED[n] & 7));
    }
    e_bytes(e, (const u8[]){ 0x48, 0x83, 0xec, 0x08 }, 4);      /* sub rsp, 8 */
    e_push_gs(e, GS(no_frame));
    e_push_gs(e, GS(host_leave));
    e_store(e, R_SP, GS(bottom));
    e_store(e, R_SI, GS(entry));
    e_mxcsr_gs(e, true, GS(host_mxcsr));
    u32 restore = e->at;
    emit_restore(e);
    return restore;
}

/* Stores the guest's state, and the host's is back: its MXCSR, DF clear, the stack aligned. Then bt_dispatch decides by bt->exit: on in
 * translated code, or back to who called enter. */
static void emit_leave(struct emit *e, u32 restore)
{
    e_store(e, SCRATCH, GS(lin));
    e_store(e, R_SP, GS(frames));
    e_load(e, SCRATCH, GS(cpu));
    for (unsigned n = 0; n < R_13; n++)
        if (same_register(n))
            e_state(e, true, n, SCRATCH, R(n));
    e_state(e, true, GUEST_SP, SCRATCH, R(R_SP));
    e_bytes(e, (const u8[]){ 0x9f, 0x0f, 0x90, 0xc0 }, 4);      /* lahf; seto al */
    e_gs(e, false, 0x89, R_AX, GS(flags));
    for (unsigned n = 0; n < 3; n++) {
        e_load(e, R_AX, GS(hi) + 8 * n);
        e_state(e, true, R_AX, SCRATCH, R(13 + n));
    }
    e_floating(e, true, SCRATCH);
    e_mov(e, R_DI, SCRATCH);
    e_call_gs(e, GS(dispatch));
    e_load(e, R_SP, GS(frames));
    e_bytes(e, (const u8[]){ 0x48, 0x85, 0xc0 }, 3);            /* test rax, rax */
    u32 back = e_jcc_later(e, 4);
    e_store(e, R_AX, GS(entry));
    e_load(e, R_DI, GS(cpu));
    e_jmp(e, restore);
    e_patch(e, back, e->at);
    e_bytes(e, (const u8[]){ 0x48, 0x83, 0xc4, 0x18 }, 4);      /* add rsp, 24: the frame, and the 8 */
    for (unsigned n = 6; n-- > 0; ) {
        if (SAVED[n] >= 8)
            e8(e, 0x41);
        e8(e, 0x58 | (SAVED[n] & 7));
    }
    e8(e, 0xc3);
}

/* Jumped to like leave, for what light.c may do. bt_light_call touches neither xmm registers nor MXCSR, so that only what a call may
 * change is stored. */
static void emit_light_call(struct emit *e, u32 leave)
{
    static const u8 CALLER_SAVED[] = { R_AX, R_CX, R_DX, R_SI, R_DI, R_8, R_9, R_10, R_11 };
    e_store(e, R_SP, GS(frames));
    e_load(e, SCRATCH, GS(cpu));
    for (unsigned n = 0; n < ARRAY_SIZE(CALLER_SAVED); n++)
        e_state(e, true, CALLER_SAVED[n], SCRATCH, R(CALLER_SAVED[n]));
    e_state(e, true, GUEST_SP, SCRATCH, R(R_SP));
    e_bytes(e, (const u8[]){ 0x9f, 0x0f, 0x90, 0xc0 }, 4);      /* lahf; seto al */
    e_gs(e, false, 0x89, R_AX, GS(flags));
    e_mov(e, R_DI, SCRATCH);
    e_call_gs(e, GS(light));
    e_store(e, R_AX, GS(entry));
    e_bytes(e, (const u8[]){ 0x48, 0x85, 0xc0 }, 3);            /* test rax, rax */
    u32 slow = e_jcc_later(e, 4);
    for (unsigned again = 0; again < 2; again++) {
        e_gs(e, false, 0x8b, R_AX, GS(flags));
        e8(e, 0x04), e8(e, 0x7f), e8(e, 0x9e);                  /* add al, 7fh; sahf */
        for (unsigned n = 0; n < ARRAY_SIZE(CALLER_SAVED); n++)
            e_state(e, false, CALLER_SAVED[n], SCRATCH, R(CALLER_SAVED[n]));
        if (again) {
            e_jmp(e, leave);
        } else {
            e_state(e, false, GUEST_SP, SCRATCH, R(R_SP));
            e_load(e, R_SP, GS(frames));
            e_mov_imm(e, SCRATCH2, ~0ul);       /* nothing is carried (translate.h) */
            e_jmp_gs(e, GS(entry));
            e_patch(e, slow, e->at);
        }
    }
}

/* r15d and a word of a table, by rcx. */
static void e_index4(struct emit *e, u8 op, u32 disp) { e8(e, 0x65), e8(e, 0x44), e8(e, op), e8(e, 0x3c), e8(e, 0x8d), e32(e, disp); }

/* Called by a cold stub: r14 the linear address, r15 the guest's rcx, rcx free, bt->exit set. Hit: returns with r15 = addend,
 * rcx = negated, bt->tmp = the guest's rcx. Miss: leaves. No flag changes. */
static void emit_l1(struct emit *e, unsigned set, unsigned write, unsigned size, bool aligned)
{
    u32 side = (set * 2 + write) * L1;
    e_store(e, R_15, GS(tmp));
    e_pext(e, true, R_CX, SCRATCH, GS(mask_l1));
    e_load_index8(e, R_15, R_CX, GS(l1_addend) + side * 8);
    e_load_index8(e, R_CX, R_CX, GS(l1_negated) + side * 8);
    e_store(e, R_CX, GS(tmp2));
    e_lea(e, true, R_CX, R_CX, SCRATCH, 0, aligned ? 0 : (s32)size - 1);
    e_pext(e, true, R_CX, R_CX, aligned ? GS(mask_aligned) : GS(mask_page));
    u32 hit = e_jrcxz(e);
    e_load(e, R_CX, GS(tmp));
    e_lea(e, true, R_SP, R_SP, NO_INDEX, 0, 8);
    e_jmp(e, e->t->leave);
    e_here(e, hit);
    e_pext(e, true, R_CX, SCRATCH, GS(mask_l1));
    e_index4(e, 0x8b, GS(l1_copies) + side * 4);
    e_lea(e, true, R_15, R_15, NO_INDEX, 0, 1);
    e_index4(e, 0x89, GS(l1_copies) + side * 4);
    e_gs(e, false, 0x8b, R_15, GS(exit));
    e_index4(e, 0x89, GS(l1_copier) + side * 4);
    e_load_index8(e, R_15, R_CX, GS(l1_addend) + side * 8);
    e_load(e, R_CX, GS(tmp2));
    e8(e, 0xc3);
}

bool bt_cache_create(struct bt *t)
{
    if (!map_views(t))
        return false;
    struct emit e = { t, t->rw + 64, 64 };      /* offset 0 is no code */
    t->enter = e.at;
    u32 restore = emit_enter(&e);
    t->leave = e.at;
    emit_leave(&e, restore);
    t->light_call = e.at;
    emit_light_call(&e, t->leave);
    t->x87_in = e.at;
    emit_x87_in(&e);
    for (unsigned set = 0; set < 2; set++)
        for (unsigned write = 0; write < 2; write++)
            for (unsigned size = 1; size <= 17; size++)
                if (!(size & (size - 1)) || size == 17) {
                    t->l1_code[set][write][size - 1] = e.at;
                    emit_l1(&e, set, write, size, size == 17);
                }
    t->start = t->used = ALIGN_UP(e.at, 64);
    return true;
}

void bt_cache_destroy(struct bt *t)
{
    if (t->rw)
        munmap(t->rw, CACHE_BYTES);
    if (t->rx)
        munmap(t->rx, CACHE_BYTES);
}

/* One aligned or unaligned store of four bytes by the thread that executes them: nothing to wait for. */
void bt_cache_patch(struct bt *t, u32 at, u32 target)
{
    u32 d = target - at - 4;
    memcpy(t->rw + at, &d, 4);
}

u32 bt_cache_target(const struct bt *t, u32 at)
{
    u32 d;
    memcpy(&d, t->rw + at, 4);
    return at + 4 + d;
}

#endif
