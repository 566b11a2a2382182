/* memory_op's questions, and what of it a PV guest cannot have.
 *
 * Owns: nothing. Called by: memory_op.c for every command that does not move memory. Lock: none; single words are read as they are.
 */
#include "hv/mm/mm_internal.h"

/* ---- how much, and where ----------------------------------------------------------------------------------------- */

static u64 tot_pages(const struct domain *d) { return read_once(d->mm.tot_pages); }
static u64 max_pages(const struct domain *d) { return read_once(d->mm.max_pages); }

/* From what the guest published for the tools. */
static u64 max_gpfn(const struct domain *d)
{
    u64 max_pfn = d->shared_info ? read_once(d->shared_info->arch.max_pfn) : 0;
    return max_pfn ? max_pfn - 1 : 0;
}

static s64 ask(struct vcpu *v, u64 arg, u64 (*question)(const struct domain *d))
{
    u16 domid;
    int err;
    if (copy_from_guest(v, &domid, arg, sizeof domid))
        return -XEN_EFAULT;
    struct domain *d = domain_get_remote(v, domid, &err);
    if (!d)
        return err;
    s64 answer = (s64)question(d);
    domain_put(d);
    return answer;
}

static s64 maximum_ram_page(struct vcpu *v, u64 arg) { return v->host->machine.nr_frames; }
static s64 current_reservation(struct vcpu *v, u64 arg) { return ask(v, arg, tot_pages); }
static s64 maximum_reservation(struct vcpu *v, u64 arg) { return ask(v, arg, max_pages); }
static s64 maximum_gpfn(struct vcpu *v, u64 arg) { return ask(v, arg, max_gpfn); }

struct __attribute__((packed)) e820_entry { u64 addr, size; u32 type; };
enum { E820_RAM = 1, E820_RESERVED = 2 };

static s64 e820_copy(struct vcpu *v, u64 arg, const struct e820_entry *e, u32 nr)
{
    struct xen_memory_map map;
    if (copy_from_guest(v, &map, arg, sizeof map))
        return -XEN_EFAULT;
    if (!nr)
        return -XEN_ENOSYS;
    if (map.nr_entries > nr)
        map.nr_entries = nr;
    if (copy_to_guest(v, (u64)map.buffer, e, map.nr_entries * sizeof *e) || copy_to_guest(v, arg, &map, sizeof map))
        return -XEN_EFAULT;
    return 0;
}

static s64 memory_map(struct vcpu *v, u64 arg)
{
    const struct mm_state *mm = &v->domain->mm;
    struct e820_entry e[ARRAY_SIZE(mm->e820)];
    u32 nr = mm->nr_e820 < ARRAY_SIZE(e) ? mm->nr_e820 : ARRAY_SIZE(e);
    for (u32 i = 0; i < nr; i++)
        e[i] = (struct e820_entry){ mm->e820[i].addr, mm->e820[i].size, mm->e820[i].type };
    return e820_copy(v, arg, e, nr);
}

static s64 machine_memory_map(struct vcpu *v, u64 arg)
{
    const struct machine *m = &v->host->machine;
    const struct e820_entry e[] = {
        { 0, (u64)m->first_mfn << PAGE_SHIFT, E820_RESERVED },
        { (u64)m->first_mfn << PAGE_SHIFT, (u64)(m->nr_frames - m->first_mfn) << PAGE_SHIFT, E820_RAM },
    };
    return v->domain->privileged ? e820_copy(v, arg, e, ARRAY_SIZE(e)) : -XEN_EPERM;
}

/* The M2P does not lie in machine frames here: no extents. */
static s64 machphys_mfn_list(struct vcpu *v, u64 arg)
{
    struct xen_machphys_mfn_list list;
    if (copy_from_guest(v, &list, arg, sizeof list))
        return -XEN_EFAULT;
    list.nr_extents = 0;
    return copy_to_guest(v, arg, &list, sizeof list) ? -XEN_EFAULT : 0;
}

static s64 machphys_mapping(struct vcpu *v, u64 arg)
{
    struct xen_machphys_mapping map = { MACH2PHYS_VIRT_START, MACH2PHYS_VIRT_END, MACH2PHYS_NR_ENTRIES - 1 };
    return copy_to_guest(v, arg, &map, sizeof map) ? -XEN_EFAULT : 0;
}

/* ---- what PV guests cannot have ---------------------------------------------------------------------------------- */

/* Reads `size` bytes of argument and looks the domain at `at` up: the errors that come before "not for you". */
static int named_domain(struct vcpu *v, u64 arg, void *buf, u64 size, u64 at)
{
    int err;
    if (copy_from_guest(v, buf, arg, size))
        return -XEN_EFAULT;
    u16 domid;
    __builtin_memcpy(&domid, (const u8 *)buf + at, sizeof domid);
    struct domain *d = domain_get_remote(v, domid, &err);
    if (d)
        domain_put(d);
    return err;
}

/* A PV domain's physmap is its own affair. */
static s64 add_to_physmap(struct vcpu *v, u64 arg)
{
    struct xen_add_to_physmap a;
    int rc = named_domain(v, arg, &a, sizeof a, offsetof(struct xen_add_to_physmap, domid));
    if (rc)
        return rc;
    return a.space == XENMAPSPACE_gmfn_foreign ? -XEN_ENOSYS : -XEN_EACCES;
}

static s64 remove_from_physmap(struct vcpu *v, u64 arg)
{
    struct xen_remove_from_physmap a;
    int rc = named_domain(v, arg, &a, sizeof a, offsetof(struct xen_remove_from_physmap, domid));
    return rc ? rc : -XEN_EACCES;
}

static s64 add_to_physmap_batch(struct vcpu *v, u64 arg)
{
    struct xen_add_to_physmap_batch a;
    int rc = named_domain(v, arg, &a, sizeof a, offsetof(struct xen_add_to_physmap_batch, domid));
    if (rc)
        return rc;
    return a.space == XENMAPSPACE_gmfn_range ? -XEN_EOPNOTSUPP : -XEN_EACCES;
}

static s64 pod_target(struct vcpu *v, u64 arg)
{
    struct xen_pod_target a;
    int rc = named_domain(v, arg, &a, sizeof a, offsetof(struct xen_pod_target, domid));
    if (rc)
        return rc;
    return v->domain->privileged ? -XEN_EINVAL : -XEN_EPERM;
}

static s64 vnumainfo(struct vcpu *v, u64 arg)
{
    struct xen_vnuma_topology_info a;
    if (copy_from_guest(v, &a, arg, sizeof a))
        return -XEN_EFAULT;
    if (a.pad)
        return -XEN_EINVAL;
    int rc = named_domain(v, arg, &a, sizeof a, offsetof(struct xen_vnuma_topology_info, domid));
    return rc ? rc : -XEN_EOPNOTSUPP;
}

/* Frames of another domain's own resources, for its device model: never one's own, and not offered yet. */
static s64 acquire_resource(struct vcpu *v, u64 arg)
{
    struct xen_mem_acquire_resource a;
    int rc = named_domain(v, arg, &a, sizeof a, offsetof(struct xen_mem_acquire_resource, domid));
    if (rc)
        return rc;
    if (!v->domain->privileged || a.domid == DOMID_SELF || a.domid == v->domain->id)
        return -XEN_EPERM;
    return -XEN_EOPNOTSUPP;
}

/* The toolstack's commands: dom0's is in this process and does not come this way. */
static s64 tools_only(struct vcpu *v, u64 arg)
{
    return v->domain->privileged ? -XEN_ENOSYS : -XEN_EPERM;
}

/* ---- dispatch ---------------------------------------------------------------------------------------------------- */

static s64 (*const queries[])(struct vcpu *v, u64 arg) = {
    [XENMEM_maximum_ram_page]           = maximum_ram_page,
    [XENMEM_current_reservation]        = current_reservation,
    [XENMEM_maximum_reservation]        = maximum_reservation,
    [XENMEM_machphys_mfn_list]          = machphys_mfn_list,
    [XENMEM_add_to_physmap]             = add_to_physmap,
    [XENMEM_memory_map]                 = memory_map,
    [XENMEM_machine_memory_map]         = machine_memory_map,
    [XENMEM_machphys_mapping]           = machphys_mapping,
    [XENMEM_set_memory_map]             = tools_only,
    [XENMEM_maximum_gpfn]               = maximum_gpfn,
    [XENMEM_remove_from_physmap]        = remove_from_physmap,
    [XENMEM_set_pod_target]             = pod_target,
    [XENMEM_get_pod_target]             = pod_target,
    [XENMEM_paging_op]                  = tools_only,
    [XENMEM_access_op]                  = tools_only,
    [XENMEM_sharing_op]                 = tools_only,
    [XENMEM_add_to_physmap_batch]       = add_to_physmap_batch,
    [XENMEM_claim_pages]                = tools_only,
    [XENMEM_machphys_compat_mfn_list]   = machphys_mfn_list,
    [XENMEM_get_vnumainfo]              = vnumainfo,
    [XENMEM_reserved_device_memory_map] = tools_only,
    [XENMEM_acquire_resource]           = acquire_resource,
};

s64 memory_query(struct vcpu *v, unsigned op, u64 start, u64 arg)
{
    if (op >= ARRAY_SIZE(queries) || !queries[op])
        return -XEN_ENOSYS;
    return start ? -XEN_EINVAL : queries[op](v, arg);
}
