/* Names for what translated code refers to: fields of struct bt, routines of the cache. Owns: the names.
 * Called by: xenlike_bt.c. No locks. */
#include <stdio.h>

#include "bt/inspect.h"

#define F(name) { offsetof(struct bt, name), sizeof_field(struct bt, name), 0, #name }
#define ARRAY(name) { offsetof(struct bt, name), sizeof_field(struct bt, name), sizeof_field(struct bt, name[0]), #name }
static const struct { u32 at, bytes, each; const char *name; } FIELDS[] = {
    F(left), F(tmp), F(tmp2), ARRAY(hi), F(lin), F(entry), F(exit), F(flags), F(host_mxcsr), F(cpu), F(mask_page), F(mask_aligned),
    F(mask_l1), F(mask_jump), F(mask_sign), F(mask_sign32), ARRAY(mask_size), F(saved_flags), F(sti_flags), F(flag_a), F(bottom), F(flag_b),
    ARRAY(mask_flags), F(x87_out), F(vectors), F(uses_fp), F(x87_ip), F(host_fcw), ARRAY(link), ARRAY(slide), F(slide_now),
};

static const char *const SETS[2] = { "kernel", "user" }, *const SIDES[2] = { "read", "write" };

bool bt_field_name(const struct bt *t, u64 offset, char out[BT_NAME])
{
    static const struct { u32 at; const char *name; } L1_TABLES[] = {
        { offsetof(struct bt, l1_negated), "negated" }, { offsetof(struct bt, l1_addend), "addend" },
        { offsetof(struct bt, l1_host), "host" }, { offsetof(struct bt, l1_slid), "slid" },
    };
    u64 l0 = offsetof(struct bt, l0);
    u64 jn = offsetof(struct bt, jump_negated), jh = offsetof(struct bt, jump_host), seg = offsetof(struct bt, seg_base);
    if (offset - l0 < sizeof t->l0) {
        u64 n = (offset - l0) / sizeof(struct bt_entry);
        snprintf(out, BT_NAME, "l0.%s.%s[%u].%s", SETS[n / (2 * L0)], SIDES[n / L0 % 2], (unsigned)(n % L0),
                 (offset - l0) % 16 ? "addend" : "negated");
        return (offset - l0) % 8 == 0;
    }
    if (offset - offsetof(struct bt, slid) < sizeof t->slid) {
        u64 n = (offset - offsetof(struct bt, slid)) / 8;
        snprintf(out, BT_NAME, "slid.%s.%s[%u]", SETS[n / (2 * L0)], SIDES[n / L0 % 2], (unsigned)(n % L0));
        return true;
    }
    for (unsigned k = 0; k < ARRAY_SIZE(L1_TABLES); k++) {
        u64 n = (offset - L1_TABLES[k].at) / 8;
        if (offset - L1_TABLES[k].at < sizeof t->l1_negated) {
            snprintf(out, BT_NAME, "l1.%s.%s.%s", SETS[n / (2 * L1)], SIDES[n / L1 % 2], L1_TABLES[k].name);
            return true;
        }
    }
    if (offset - jn < sizeof t->jump_negated || offset - jh < sizeof t->jump_host) {
        bool host = offset >= jh && offset - jh < sizeof t->jump_host;
        u64 n = (offset - (host ? jh : jn)) / 8;
        snprintf(out, BT_NAME, "jumps.%s.%s", SETS[n / JUMPS], host ? "host" : "negated");
        return true;
    }
    if (offset - seg < sizeof t->seg_base) {
        snprintf(out, BT_NAME, "%s_base", (offset - seg) / 8 ? "gs" : "fs");
        return true;
    }
    for (unsigned k = 0; k < ARRAY_SIZE(FIELDS); k++) {
        u64 in = offset - FIELDS[k].at;
        if (in >= FIELDS[k].bytes)
            continue;
        if (FIELDS[k].each)
            snprintf(out, BT_NAME, "%s[%u]", FIELDS[k].name, (unsigned)(in / FIELDS[k].each));
        else
            snprintf(out, BT_NAME, "%s", FIELDS[k].name);
        return true;
    }
    return false;
}

bool bt_routine_name(const struct bt *t, u32 at, char out[BT_NAME])
{
    if (at == t->enter || at == t->leave || at == t->light_call || at == t->x87_in) {
        snprintf(out, BT_NAME, "%s", at == t->enter ? "enter" : at == t->leave ? "leave" : at == t->x87_in ? "x87_in" : "light_call");
        return true;
    }
    for (unsigned set = 0; set < 2; set++)
        for (unsigned w = 0; w < 2; w++)
            for (unsigned k = 0; k < 17; k++)
                if (at && t->l1_code[set][w][k] == at) {
                    snprintf(out, BT_NAME, "l1.%s.%s.%u%s", SETS[set], SIDES[w], k == 16 ? 16 : k + 1, k == 16 ? ".aligned" : "");
                    return true;
                }
    return false;
}
