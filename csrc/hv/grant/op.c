/* grant_table_op: commands, batches, table management (xen-abi 6.3; Xen's public grant_table.h).
 *
 * Owns: nothing. Called by: hypercall dispatch. No lock of its own. Elements are done in order: copied in once, done, and their
 * results copied out before the next is looked at; a copy that fails ends the call with -EFAULT, and what was done stays done.
 */
#include "hv/grant/private.h"
#include "hv/hypercall.h"

enum {
    GNTTAB_CMD_MASK = 0xfff,            /* the bits above carry Xen's own continuations; guests pass 0 */
    UNMAP_BATCH = 32,                   /* unmaps that share a TLB flush */
    WORK_ELEMENT = 32,
};

/* As Xen's range check of a guest handle: the hypervisor's range is refused even before something is written there. */
static bool guest_pointer_ok(u64 va)
{
    return va < 1ul << 47 || va >= HYPERVISOR_VIRT_END;
}

/* A batch of a dying domain ends early: its result matters to nobody, and its death waits for it. */
static inline bool batch_goes_on(struct vcpu *v, u32 i, u32 count)
{
    return i < count && read_once(v->domain->state) < DOM_dying && hypercall_charge(v, WORK_ELEMENT);
}

#define copy_element(v, op, uop, i)     copy_from_guest((v), (op), (uop) + (u64)(i) * sizeof *(op), sizeof *(op))
/* Copies one field, or a whole element, back to where it came from. */
#define return_field(v, op, uop, i, field) \
    copy_to_guest((v), (uop) + (u64)(i) * sizeof *(op) + ((u8 *)&(op)->field - (u8 *)(op)), &(op)->field, sizeof (op)->field)
#define return_element(v, op, uop, i)   copy_to_guest((v), (uop) + (u64)(i) * sizeof *(op), (op), sizeof *(op))

/* The domain whose table a management command names, with a reference; NULL and *status. */
static struct domain *find_managed(struct vcpu *v, u16 domid, s16 *status)
{
    int err;
    struct domain *d = domain_get_remote(v, domid, &err);

    *status = d ? GNTST_okay : err == -XEN_EPERM ? GNTST_permission_denied : GNTST_bad_domain;
    return d;
}

/* ---- batches ----------------------------------------------------------------------------------------------------- */

static s64 op_map_grant_ref(struct vcpu *v, u64 uop, u32 count)
{
    struct granter_cache cache = { 0 };
    s64 rc = 0;

    for (u32 i = 0; !rc && batch_goes_on(v, i, count); i++) {
        struct gnttab_map_grant_ref op;
        if (copy_element(v, &op, uop, i)) {
            rc = -XEN_EFAULT;
            break;
        }
        grant_map(v, &cache, &op);
        if (return_element(v, &op, uop, i))
            rc = -XEN_EFAULT;
    }
    granter_drop(&cache);
    return rc;
}

/* The two unmaps differ in the element's layout alone. `load` fills *u from element i, `store` writes its status back. */
typedef int unmap_io_fn(struct vcpu *v, u64 uop, u32 i, struct grant_unmap *u);

static s64 unmap_all(struct vcpu *v, u64 uop, u32 count, unmap_io_fn *load, unmap_io_fn *store)
{
    struct grant_unmap batch[UNMAP_BATCH];
    s64 rc = 0;

    for (u32 i = 0; !rc && batch_goes_on(v, i, count); ) {
        unsigned n = 0;
        while (!rc && n < UNMAP_BATCH && batch_goes_on(v, i, count)) {
            if (load(v, uop, i, &batch[n])) {
                rc = -XEN_EFAULT;
                break;
            }
            grant_unmap_begin(v, &batch[n]);
            if (store(v, uop, i, &batch[n]))
                rc = -XEN_EFAULT;
            n++, i++;
        }
        grant_unmap_finish(v, batch, n);
    }
    return rc;
}

static int load_unmap(struct vcpu *v, u64 uop, u32 i, struct grant_unmap *u)
{
    struct gnttab_unmap_grant_ref op;
    int rc = copy_element(v, &op, uop, i);

    if (!rc)
        *u = (struct grant_unmap){ .host_addr = op.host_addr, .dev_bus_addr = op.dev_bus_addr, .handle = op.handle };
    return rc;
}

static int store_unmap(struct vcpu *v, u64 uop, u32 i, struct grant_unmap *u)
{
    struct gnttab_unmap_grant_ref op = { .status = u->status };

    return return_field(v, &op, uop, i, status);
}

static s64 op_unmap_grant_ref(struct vcpu *v, u64 uop, u32 count)
{
    return unmap_all(v, uop, count, load_unmap, store_unmap);
}

static int load_replace(struct vcpu *v, u64 uop, u32 i, struct grant_unmap *u)
{
    struct gnttab_unmap_and_replace op;
    int rc = copy_element(v, &op, uop, i);

    if (!rc)
        *u = (struct grant_unmap){ .host_addr = op.host_addr, .new_addr = op.new_addr, .handle = op.handle };
    return rc;
}

static int store_replace(struct vcpu *v, u64 uop, u32 i, struct grant_unmap *u)
{
    struct gnttab_unmap_and_replace op = { .status = u->status };

    return return_field(v, &op, uop, i, status);
}

static s64 op_unmap_and_replace(struct vcpu *v, u64 uop, u32 count)
{
    return unmap_all(v, uop, count, load_replace, store_replace);
}

static s64 op_copy(struct vcpu *v, u64 uop, u32 count)
{
    struct grant_copy_batch batch = { .dest.write = true };
    s64 rc = 0;

    for (u32 i = 0; !rc && batch_goes_on(v, i, count); i++) {
        struct gnttab_copy op;
        if (copy_element(v, &op, uop, i)) {
            rc = -XEN_EFAULT;
            break;
        }
        grant_copy(v, &batch, &op);
        if (return_field(v, &op, uop, i, status))
            rc = -XEN_EFAULT;
    }
    grant_copy_finish(v, &batch);
    return rc;
}

static s64 op_swap_grant_ref(struct vcpu *v, u64 uop, u32 count)
{
    for (u32 i = 0; batch_goes_on(v, i, count); i++) {
        struct gnttab_swap_grant_ref op;
        if (copy_element(v, &op, uop, i))
            return -XEN_EFAULT;
        op.status = (s16)grant_swap(v->domain, op.ref_a, op.ref_b);
        if (return_field(v, &op, uop, i, status))
            return -XEN_EFAULT;
    }
    return 0;
}

/* A debugging aid: there is no console to dump to, so it only says whether it would. */
static s64 op_dump_table(struct vcpu *v, u64 uop, u32 count)
{
    for (u32 i = 0; batch_goes_on(v, i, count); i++) {
        struct gnttab_dump_table op;
        if (copy_element(v, &op, uop, i))
            return -XEN_EFAULT;
        struct domain *d = find_managed(v, op.dom, &op.status);
        if (d)
            domain_put(d);
        if (return_field(v, &op, uop, i, status))
            return -XEN_EFAULT;
    }
    return 0;
}

/* ---- table management: one element ------------------------------------------------------------------------------- */

/* Grows d's table and writes its first nr frame numbers to `list`. */
static s16 setup(struct vcpu *v, struct domain *d, u32 nr, u64 list)
{
    if (!grant_grow(d, nr))
        return GNTST_general_error;
    for (u32 i = 0; i < nr; i++) {
        u64 mfn = d->gt.frame_mfns[i];
        if (copy_to_guest(v, list + i * sizeof mfn, &mfn, sizeof mfn))
            return GNTST_bad_virt_addr;
    }
    return GNTST_okay;
}

static s64 op_setup_table(struct vcpu *v, u64 uop, u32 count)
{
    struct gnttab_setup_table op;

    if (count != 1)
        return -XEN_EINVAL;
    if (copy_element(v, &op, uop, 0))
        return -XEN_EFAULT;
    u64 list = (u64)op.frame_list;
    if (!guest_pointer_ok(list))
        return -XEN_EFAULT;
    struct domain *d = find_managed(v, op.dom, &op.status);
    if (d) {
        op.status = setup(v, d, op.nr_frames, list);
        domain_put(d);
    }
    return return_field(v, &op, uop, 0, status) ? -XEN_EFAULT : 0;
}

static s64 op_query_size(struct vcpu *v, u64 uop, u32 count)
{
    struct gnttab_query_size op;

    if (count != 1)
        return -XEN_EINVAL;
    if (copy_element(v, &op, uop, 0))
        return -XEN_EFAULT;
    struct domain *d = find_managed(v, op.dom, &op.status);
    if (d) {
        op.nr_frames = read_once(d->gt.nr_frames);
        op.max_nr_frames = d->gt.max_frames;
        domain_put(d);
    }
    return return_element(v, &op, uop, 0) ? -XEN_EFAULT : 0;
}

static s64 op_get_status_frames(struct vcpu *v, u64 uop, u32 count)
{
    struct gnttab_get_status_frames op;

    if (count != 1)
        return -XEN_EINVAL;
    if (copy_element(v, &op, uop, 0) || !guest_pointer_ok((u64)op.frame_list))
        return -XEN_EFAULT;
    struct domain *d = find_managed(v, op.dom, &op.status);
    if (d) {
        op.status = op.nr_frames ? GNTST_general_error : GNTST_okay;    /* version 1 has none */
        domain_put(d);
    }
    return return_field(v, &op, uop, 0, status) ? -XEN_EFAULT : 0;
}

/* The version in use is told even with an error. Guests take -ENOSYS for 2 as "this hypervisor has version 1 only". */
static s64 op_set_version(struct vcpu *v, u64 uop, u32 count)
{
    struct gnttab_set_version op;

    if (copy_element(v, &op, uop, 0))
        return -XEN_EFAULT;
    s64 rc = op.version == 1 ? 0 : op.version == 2 ? -XEN_ENOSYS : -XEN_EINVAL;
    op.version = 1;
    return return_element(v, &op, uop, 0) ? -XEN_EFAULT : rc;
}

static s64 op_get_version(struct vcpu *v, u64 uop, u32 count)
{
    struct gnttab_get_version op;
    int err;

    if (copy_element(v, &op, uop, 0))
        return -XEN_EFAULT;
    struct domain *d = domain_get_remote(v, op.dom, &err);
    if (!d)
        return err;
    domain_put(d);
    op.version = 1;
    return return_field(v, &op, uop, 0, version) ? -XEN_EFAULT : 0;
}

/* Page transfer is an option of Xen's that is off where it is not needed, and answers so; there is no cache to flush on x86. */
static s64 op_transfer(struct vcpu *v, u64 uop, u32 count) { return -XEN_EOPNOTSUPP; }
static s64 op_cache_flush(struct vcpu *v, u64 uop, u32 count) { return -XEN_EOPNOTSUPP; }

/* ---- dispatch ---------------------------------------------------------------------------------------------------- */

typedef s64 grant_op_fn(struct vcpu *v, u64 uop, u32 count);

static grant_op_fn *const grant_ops[] = {
#define GNTTABOP(number, name, type) [number] = op_##name,
#include "xen/gnttabop.def"
#undef GNTTABOP
};

s64 do_grant_table_op(struct vcpu *v, u64 cmd_reg, u64 uop, u64 count_reg)
{
    u32 cmd = (u32)cmd_reg, count = (u32)count_reg;     /* unsigned int in Xen's prototype */

    if ((s32)count < 0 || (cmd & ~GNTTAB_CMD_MASK))
        return -XEN_EINVAL;
    if (cmd >= ARRAY_SIZE(grant_ops))
        return -XEN_ENOSYS;
    if (!guest_pointer_ok(uop))
        return -XEN_EFAULT;
    return grant_ops[cmd](v, uop, count);
}
