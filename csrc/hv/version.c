/* xen_version and vm_assist: what this hypervisor is, and the assists a guest asks for. Called by: dispatch. No lock. */
#include "xen/version.h"

#include <string.h>

#include "hv/host.h"
#include "hv/hypercall.h"
#include "xen/features.h"

/* What a PV64 domain is offered (section 1.2). */
static u32 features(const struct domain *d)
{
    u32 f = 1u << XENFEAT_mmu_pt_update_preserve_ad | 1u << XENFEAT_highmem_assist | 1u << XENFEAT_gnttab_map_avail_bits |
            1u << XENFEAT_memory_op_vnode_supported | 1u << XENFEAT_direct_mapped;
    if (d->vm_assist & 1ul << VMASST_TYPE_pae_extended_cr3)
        f |= 1u << XENFEAT_pae_pgdir_above_4gb;
    if (d->privileged)
        f |= 1u << XENFEAT_dom0;
    return f;
}

/* A string in a field of its own size, zero to the end: nothing of ours leaks behind it (XSA-122). */
static s64 give_string(struct vcpu *v, u64 arg, const char *s, u64 size)
{
    char field[1024] = { 0 };
    strncpy(field, s, size - 1);
    return copy_to_guest(v, arg, field, size);
}

static s64 give_compile_info(struct vcpu *v, u64 arg)
{
    struct xen_compile_info info = { 0 };
    strncpy(info.compiler, "gcc " __VERSION__, sizeof info.compiler - 1);
    strncpy(info.compile_by, "xenlike", sizeof info.compile_by - 1);
    strncpy(info.compile_domain, "localdomain", sizeof info.compile_domain - 1);
    strncpy(info.compile_date, "-", sizeof info.compile_date - 1);      /* builds are reproducible */
    return copy_to_guest(v, arg, &info, sizeof info);
}

static s64 give_features(struct vcpu *v, u64 arg)
{
    struct xen_feature_info info;
    if (copy_from_guest(v, &info, arg, sizeof info))
        return -XEN_EFAULT;
    if (info.submap_idx != 0)
        return -XEN_EINVAL;
    info.submap = features(v->domain);
    return copy_to_guest(v, arg, &info, sizeof info);
}

static __attribute__((noinline)) s64 version_of(struct vcpu *v, u64 cmd, u64 arg)
{
    switch (cmd) {
    case XENVER_extraversion:
        return give_string(v, arg, ".0-xenlike", XEN_EXTRAVERSION_LEN);
    case XENVER_compile_info:
        return give_compile_info(v, arg);
    case XENVER_capabilities:
        return give_string(v, arg, "xen-3.0-x86_64 ", XEN_CAPABILITIES_INFO_LEN);
    case XENVER_changeset:
        return give_string(v, arg, v->domain->privileged ? "unavailable" : "<denied>", XEN_CHANGESET_INFO_LEN);
    case XENVER_platform_parameters: {
        u64 virt_start = HYPERVISOR_VIRT_START;
        return copy_to_guest(v, arg, &virt_start, sizeof virt_start);
    }
    case XENVER_get_features:
        return give_features(v, arg);
    case XENVER_pagesize:
        return arg ? -XEN_EINVAL : PAGE_SIZE;
    case XENVER_guest_handle:
        return copy_to_guest(v, arg, v->domain->uuid, sizeof v->domain->uuid);
    case XENVER_commandline:
        return give_string(v, arg, v->domain->privileged ? "" : "<denied>", sizeof(xen_commandline_t));
    case XENVER_build_id:
        return v->domain->privileged ? -XEN_ENODATA : -XEN_EPERM;
    default:
        return -XEN_ENOSYS;
    }
}

static bool assist_valid(u64 type)
{
#define VMASST(number, name) if (type == (number)) return true;
#include "xen/vmasst.def"
#undef VMASST
    return false;
}

s64 do_vm_assist(struct vcpu *v, u64 cmd, u64 type)
{
    if (cmd != VMASST_CMD_enable && cmd != VMASST_CMD_disable)
        return -XEN_ENOSYS;
    if (!assist_valid(type))
        return -XEN_EINVAL;
    if (cmd == VMASST_CMD_enable)
        atomic_or(&v->domain->vm_assist, 1ul << type);
    else
        atomic_and(&v->domain->vm_assist, ~(1ul << type));
    return 0;
}

s64 do_xen_version(struct vcpu *v, u64 cmd, u64 arg)
{
    if (likely(cmd == XENVER_version))  /* how kernels have pending events delivered: nothing is to be slow about it */
        return XEN_VERSION;
    return version_of(v, cmd, arg);
}
