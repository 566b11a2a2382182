/* See xenlike.h: PCs, as the builder and the console see them. */
#include <string.h>

#include "pc/pc.h"
#include "xenlike.h"

static struct pc *pc_of(struct host *h, u16 domid)
{
    struct domain *d = host_domain(h, domid);
    return d ? d->pc : NULL;
}

int xl_pc_populate(struct host *h, u16 domid, u32 n)
{
    struct pc *pc = pc_of(h, domid);
    return pc ? pc_populate(pc, n) : -XEN_EINVAL;
}

static int copy(struct host *h, u16 domid, u64 pa, void *buf, u64 n, bool write)
{
    struct pc *pc = pc_of(h, domid);
    u64 size = pc ? (u64)pc->nr_pages << PAGE_SHIFT : 0;
    if (pa > size || n > size - pa)
        return -XEN_EINVAL;
    for (u64 done = 0, part; done < n; done += part) {
        u64 offset = (pa + done) % PAGE_SIZE;
        u32 mfn = pc->p2m[(pa + done) >> PAGE_SHIFT];
        part = PAGE_SIZE - offset < n - done ? PAGE_SIZE - offset : n - done;
        int rc = write ? xl_frame_write(h, domid, mfn, (u32)offset, (u8 *)buf + done, (u32)part)
                       : xl_frame_read(h, domid, mfn, (u32)offset, (u8 *)buf + done, (u32)part);
        if (rc)
            return rc;
    }
    return 0;
}

int xl_pc_read(struct host *h, u16 domid, u64 pa, void *buf, u64 n) { return copy(h, domid, pa, buf, n, false); }
int xl_pc_write(struct host *h, u16 domid, u64 pa, const void *buf, u64 n) { return copy(h, domid, pa, (void *)buf, n, true); }

int xl_pc_start(struct vcpu *v, u32 eip, u32 eax, u32 ebx)
{
    if (v->backend != BACKEND_PC || v->id)
        return -XEN_EINVAL;
    if (vcpu_runnable(v))
        return -XEN_EBUSY;
    pc_start(pc_cpu_of(v->cpu), eip, eax, ebx);
    return 0;
}

int xl_pc_output(struct host *h, u16 domid, u8 *buf, u32 n)
{
    struct pc *pc = pc_of(h, domid);
    if (!pc)
        return -XEN_EINVAL;
    spin_lock(&pc->lock);
    n = uart_output(pc, buf, n);
    spin_unlock(&pc->lock);
    return (int)n;
}

int xl_pc_input(struct host *h, u16 domid, const u8 *buf, u32 n)
{
    struct pc *pc = pc_of(h, domid);
    if (!pc)
        return -XEN_EINVAL;
    spin_lock(&pc->lock);
    n = uart_input(pc, buf, n);
    spin_unlock(&pc->lock);
    return (int)n;
}
