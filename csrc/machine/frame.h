/* Machine memory: frames, the frame table, the M2P table.
 *
 * Owns: who owns a frame, its references, its type. Called by: everything that touches guest memory.
 * Locks: heap.lock guards the free list only; a frame's words change by compare-and-swap; domain->mm.pages (the list of
 * a domain's frames) is guarded by domain->mm.list_lock.
 *
 * References, as in Xen (xen/arch/x86/mm.c): count = general references (allocation 1, each PTE mapping 1, each user 1);
 * type_info = what the frame is used as now, and by how many. A frame has one type while its type count is above 0.
 * "Writable" and "page table" can therefore never hold at once: the whole safety of PV paging.
 */
#ifndef XL_MACHINE_FRAME_H
#define XL_MACHINE_FRAME_H

#include "base/types.h"
#ifndef XL_CDEF
#include "base/lock.h"
#include "machine/codemap.h"
#endif

enum frame_type {
    PGT_none = 0, PGT_l1_page_table = 1, PGT_l2_page_table = 2, PGT_l3_page_table = 3, PGT_l4_page_table = 4,
    PGT_seg_desc_page = 5, PGT_shared_page = 6, PGT_writable_page = 7,
};

/* Page-fault error code bits (SDM vol. 3, 4.7) and access kinds. */
enum { PFEC_present = 1, PFEC_write = 2, PFEC_user = 4, PFEC_reserved = 8, PFEC_insn = 16 };
enum mmu_access { MMU_READ = 0, MMU_WRITE = PFEC_write, MMU_EXEC = PFEC_insn };

#ifndef XL_CDEF

struct host;
struct domain;
struct vcpu;

/* type_info: count in the low 32 bits, the rest above. One 64-bit word, changed by cmpxchg only. */
#define PGT_COUNT_MASK   0x00000000fffffffful
#define PGT_TYPE_SHIFT   32
#define PGT_TYPE_MASK    (0xful << PGT_TYPE_SHIFT)
#define PGT_VALIDATED    (1ul << 40)    /* the type's checks have been made */
#define PGT_PINNED       (1ul << 41)    /* MMUEXT_PIN_*: one of the counts is the pin */
#define PGT_PARTIAL      (1ul << 42)    /* validation under way (its maker holds mm.lock) */
#define PGT_STAMPING     (1ul << 43)    /* the last writable reference is going; whoever takes another clears it */
static inline unsigned pgt_type(u64 type_info) { return (type_info & PGT_TYPE_MASK) >> PGT_TYPE_SHIFT; }
static inline u32 pgt_count(u64 type_info) { return (u32)type_info; }

/* count_info: references in the low 32 bits, state bits above. */
#define PGC_COUNT_MASK   0x00000000fffffffful
#define PGC_ALLOCATED    (1ul << 40)    /* holds one of the counts until the owner gives the frame up */
#define PGC_SPECIAL      (1ul << 41)    /* Xen's own page that a guest may map: shared_info, grant table ("Xen heap") */
#define PGC_TOUCHED      (1ul << 42)    /* may be nonzero: zero it before another domain gets it */
#define PGC_FOREIGN      (1ul << 43)    /* another domain mapped it once: shootdowns look at every vCPU */

struct frame {                  /* 40 bytes */
    u64 type_info;
    u64 count_info;
    u32 next, prev;             /* the owner's list of frames [domain->mm.list_lock], or the free list [heap.lock]; 0 ends */
    u16 owner;                  /* domid; DOMID_INVALID: none. Stable while a reference is held */
    s32 linear;                 /* + entries made to this table by same-level tables, - uses [mm.lock] */
    u64 tlb_stamp;              /* host->tlb_clock when the last writable reference went, or when freed; see machine/mmu.h */
};

struct machine {
    u8 *ram;                    /* nr_frames * PAGE_SIZE, one sparse memfd */
    struct frame *frames;
    u64 *m2p;                   /* mfn -> pfn; INVALID_M2P: none. First m2p_valid entries are initialised */
    u32 nr_frames, first_mfn;   /* frames [0, first_mfn) are DOMID_IO, never RAM */
    int memfd;
    struct {
        spinlock_t lock;
        u32 free_head;          /* freed frames */
        u32 fresh;              /* frames from here up were never used */
        u32 nr_free;            /* free_head list + fresh */
    } heap;
    u8 *dirty;                  /* one byte a frame: written since the last snapshot (snapshot.c clears) */
    u32 m2p_valid;
    struct codemap codemap;     /* of ram */
};

static const u64 INVALID_M2P = ~0ul;

int machine_init(struct machine *m, u64 bytes);       /* -ENOMEM */
void machine_destroy(struct machine *m);

static inline bool mfn_valid(const struct machine *m, u64 mfn) { return mfn >= m->first_mfn && mfn < m->nr_frames; }
static inline struct frame *mfn_frame(const struct machine *m, u64 mfn) { return &m->frames[mfn]; }
static inline u32 frame_mfn(const struct machine *m, const struct frame *f) { return (u32)(f - m->frames); }
static inline void *mfn_ptr(const struct machine *m, u64 mfn) { return m->ram + (mfn << PAGE_SHIFT); }   /* raw: machine/ only */

/* Allocates n zeroed frames for a domain (owner set, count 1 = allocated, on its page list). special: Xen's own page:
 * typed writable for good, not on the domain's list nor in its tot_pages. Returns 0 or -ENOMEM with nothing taken. */
int frames_alloc(struct host *h, struct domain *d, u32 n, bool special, u32 *mfns);

/* Takes / drops a general reference. get fails (false) unless the frame is d's. One that d gave up stays its own, as on Xen, until
 * the last reference goes; that put frees it. */
bool get_page(struct host *h, u64 mfn, const struct domain *d);
bool get_page_any(struct host *h, u64 mfn);            /* a further reference to a frame that is known to be referenced */
void put_page(struct host *h, u64 mfn);
/* Gives up the allocation reference (decrease_reservation, death). False if it was given up before. */
bool frame_release_allocation(struct host *h, u64 mfn);

/* Takes a type reference on a frame that the caller holds a general reference to.
 *   PGT_writable_page: 0, or -EBUSY... -EINVAL while it has another type with count > 0.
 *   table types: validates on the first reference (hv/mm/validate.c); caller holds the owner's mm.lock.
 * Drops: the last drop of a table type devalidates (drops its entries' references); same lock. */
int get_page_type(struct host *h, u64 mfn, unsigned type);
void put_page_type(struct host *h, u64 mfn);

static inline int get_page_and_type(struct host *h, u64 mfn, const struct domain *d, unsigned type)
{
    if (!get_page(h, mfn, d))
        return -22;             /* -XEN_EINVAL */
    int rc = get_page_type(h, mfn, type);
    if (rc)
        put_page(h, mfn);
    return rc;
}

static inline void put_page_and_type(struct host *h, u64 mfn)
{
    put_page_type(h, mfn);
    put_page(h, mfn);
}

/* The one choke point for writes by hypervisor, back ends, debugger, builder and Python guests.
 * begin: takes a general and a writable type reference, marks the frame touched and dirty; returns its bytes, or NULL when
 * the frame is not d's (d NULL: any owner, the caller already holds a reference) or is a page table now. The pointer must not outlive end. */
void *frame_write_begin(struct host *h, u64 mfn, const struct domain *d);
void frame_write_end(struct host *h, u64 mfn);
/* The same for reading: a general reference only. */
const void *frame_read_begin(struct host *h, u64 mfn, const struct domain *d);
void frame_read_end(struct host *h, u64 mfn);
/* Stores 8 bytes into a frame whatever its type: page-table entries by hv/mm, A/D bits by the walker. Marks dirty. */
static inline void frame_mark_dirty(struct machine *m, u64 mfn);

static inline void frame_mark_dirty(struct machine *m, u64 mfn)
{
    if (!m->dirty[mfn])
        m->dirty[mfn] = 1;
    codemap_wrote_page(&m->codemap, mfn, ~0ul);
}

/* The guest may store into the frame from here on: its bytes may stop being zero, and change since the last snapshot. Each store tells
 * the codemap by itself. Caller holds a reference. */
static inline void frame_mark_stored(struct machine *m, u64 mfn)
{
    struct frame *f = mfn_frame(m, mfn);
    if (!(read_once(f->count_info) & PGC_TOUCHED))
        atomic_or(&f->count_info, PGC_TOUCHED);
    if (!m->dirty[mfn])
        m->dirty[mfn] = 1;
}

/* `digest` with the frame's bytes mixed in; a frame that nobody wrote changes nothing. */
u64 frame_digest(const struct machine *m, u64 mfn, u64 digest);

/* M2P. Reading beyond what is initialised gives INVALID_M2P. */
static inline u64 m2p_get(const struct machine *m, u64 mfn) { return mfn < m->m2p_valid ? read_once(m->m2p[mfn]) : INVALID_M2P; }
static inline void m2p_set(struct machine *m, u64 mfn, u64 pfn) { write_once(m->m2p[mfn], pfn); }

#endif
#endif
