/* The binary translator as Python sees it: blocks, what each guest instruction became, exits, names for what code refers to.
 *
 * Owns: nothing. Read by cffi like xenlike.h. Used by xenlike/btview (the viewer) and tests. A translator belongs to the thread that runs its CPU:
 * look at it while the CPU does not run. Numbers of blocks and offsets stay valid until the next flush (xl_bt_stats.flushes).
 */
#ifndef XL_XENLIKE_BT_H
#define XL_XENLIKE_BT_H

#include "base/types.h"

struct bt;
struct vcpu;
struct x86_bare;

enum { XL_BT_ONE = 1, XL_BT_NO_CHAIN = 2, XL_BT_FLUSH = 4, XL_BT_TINY_TLB = 8, XL_BT_VERIFY = 16, XL_BT_PROFILE = 32, XL_BT_CLOCK = 64 };    /* bt/bt.h's options */
enum { XL_BT_COPIED, XL_BT_REWRITTEN, XL_BT_INLINE, XL_BT_CALLED_OUT, XL_BT_ENDING };  /* what became of a guest instruction */
enum { XL_BT_EXIT_CHAIN, XL_BT_EXIT_LINK, XL_BT_EXIT_NEXT, XL_BT_EXIT_MISS, XL_BT_EXIT_STEP, XL_BT_EXIT_BRANCH, XL_BT_EXIT_TIME,
       XL_BT_EXIT_MISFIT };
enum { XL_BT_NAME = 48, XL_BT_MAX_BLOCK = 160 };        /* bytes of a name, with its 0; instructions of a block, at most */

/* The translator of a CPU, or NULL: it has none (interpreted; a vCPU that is not of machine code). */
struct bt *xl_bt_of_bare(struct x86_bare *b);
struct bt *xl_bt_of_vcpu(struct vcpu *v);

struct xl_bt_stats {            /* struct bt_stats since it was made, and sizes */
    u64 blocks, translated;     /* blocks, and the instructions in them */
    u64 interpreted;            /* instructions that the interpreter did, between blocks and within */
    u64 exits;                  /* returns from translated code to the loop */
    u64 flushes, invalidated;   /* everything forgotten; blocks dropped because their code was written */
    u64 host_bytes, guest_bytes;        /* of the blocks */
    u64 rejected;               /* blocks that the verifier refused (XL_BT_VERIFY) */
    u64 translate_ns;           /* spent on translating (XL_BT_CLOCK) */
    u64 rx;                     /* where the cache is executed; cache offsets count from there */
    u32 used, nr_blocks, nr_links, links_filled, options;
};
void xl_bt_stats(const struct bt *t, struct xl_bt_stats *out);

/* Fuzzing (bt/fuzz.c): runs `machines` hostile bare machines from seed, seed + 1, ... in both engines; ram: scratch of 2 MiB. Returns how many ran.
 * Report (size >= 256): empty, or what went wrong with the last one. *compared: instructions after which states were compared. */
u64 xl_bt_fuzz(u64 seed, u64 machines, u8 *ram, char *report, u64 size, u64 *compared);

struct xl_bt_block {
    u64 va, hits;               /* guest address; executions (XL_BT_PROFILE) */
    u32 code, code_len;         /* cache offset and bytes of its host code */
    s32 low;                    /* where the guest's code begins, from va */
    u32 bytes, nr;              /* of the guest's code; instructions, 0: the interpreter does the first one, there is no code */
    u32 context;                /* bit 0 TLB set, 1 CPL 3, 2 SSE, 3 floating point, 8 32-bit code, 9 FS and 10 GS usable in it, 11 x87 */
    u32 invalid;                /* its guest code was written since */
    u32 nr_exits, first_exit;
};
/* Block n, 1 <= n < nr_blocks. -2 (ENOENT): there is none. */
int xl_bt_block(const struct bt *t, u32 n, struct xl_bt_block *out);

struct xl_bt_map { u32 code; s32 off; u32 len, treatment; };    /* host code from here on is that of the guest instruction at off */
/* Those of block n, in order; returns how many. At most `max` (XL_BT_MAX_BLOCK suffices) are written. */
u32 xl_bt_maps(const struct bt *t, u32 n, struct xl_bt_map *out, u32 max);

struct xl_bt_exit {
    u64 target;                 /* CHAIN, LINK, NEXT: guest address */
    u32 kind, block;
    s32 off;                    /* of the guest instruction */
    s32 k;
    u32 again, behind, patch;   /* as in bt/internal.h */
    u32 size, write, align, early, opens, slid;         /* MISS */
    u32 drops, shadow;
    u32 leads_to;               /* CHAIN, LINK: cache offset where the jump leads now */
    u32 linked;                 /* that is in a block, not the stub that leaves */
};
/* Exit n of the cache. -2: there is none. */
int xl_bt_exit(const struct bt *t, u32 n, struct xl_bt_exit *out);

/* n bytes of host code from a cache offset; of block b's guest code (as it is in memory now). Return how many there were. */
u32 xl_bt_code(const struct bt *t, u32 at, u8 *out, u32 n);
u32 xl_bt_guest_code(const struct bt *t, u32 b, u8 *out, u32 n);
/* What [gs:offset] is ("left", "hi[0]", "l0.user.write[17].addend"), what is at a cache offset ("leave", "l1.user.read.8"). False: nothing with a name. */
bool xl_bt_field_name(const struct bt *t, u64 offset, char out[XL_BT_NAME]);
bool xl_bt_routine_name(const struct bt *t, u32 at, char out[XL_BT_NAME]);
/* What is at an offset in the CPU's state, which [bt.cpu] points to ("rflags", "fs.base"). False: nothing with a name. */
bool xl_bt_cpu_name(u64 offset, char out[XL_BT_NAME]);

/* The verifier's word on block n (bt/verify.c): NULL: in order; else what is wrong, and in *at the cache offset where (-2: there is no such block). */
const char *xl_bt_verify(const struct bt *t, u32 n, u32 *at);

/* For tests that plant defects: other bytes at a cache offset; other contents of an exit's record (leads_to, linked: not used). -22 (EINVAL): not there. */
int xl_bt_plant_code(struct bt *t, u32 at, const u8 *bytes, u32 n);
int xl_bt_plant_exit(struct bt *t, u32 n, const struct xl_bt_exit *x);

#endif
