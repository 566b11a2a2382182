"""The headers by themselves: the documented layouts as plain facts, and every way in which the headers are read.

These run without Xen's headers. If they failed, the core, cffi and guests would not agree on a structure, or one of
them could not read the headers at all.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import cffi
import pytest

import abi_headers
import abi_probe

# Sizes, then offsets, of the structures that guests of every kind share with the hypervisor.
FACTS: dict[str, tuple[int, dict[str, int]]] = {
    "struct start_info": (1168, {
        "magic": 0, "nr_pages": 32, "shared_info": 40, "flags": 48, "store_mfn": 56, "store_evtchn": 64,
        "console.domU.mfn": 72, "console.domU.evtchn": 80, "pt_base": 88, "nr_pt_frames": 96, "mfn_list": 104,
        "mod_start": 112, "mod_len": 120, "cmd_line": 128, "first_p2m_pfn": 1152, "nr_p2m_frames": 1160}),
    "struct shared_info": (3136, {
        "vcpu_info": 0, "evtchn_pending": 2048, "evtchn_mask": 2560, "wc_version": 3072, "wc_sec": 3076,
        "wc_nsec": 3080, "wc_sec_hi": 3084, "arch.max_pfn": 3088, "arch.pfn_to_mfn_frame_list_list": 3096,
        "arch.nmi_reason": 3104, "arch.p2m_cr3": 3112, "arch.p2m_vaddr": 3120, "arch.p2m_generation": 3128}),
    "struct vcpu_info": (64, {
        "evtchn_upcall_pending": 0, "evtchn_upcall_mask": 1, "evtchn_pending_sel": 8, "arch.cr2": 16, "time": 32}),
    "struct vcpu_time_info": (32, {
        "version": 0, "tsc_timestamp": 8, "system_time": 16, "tsc_to_system_mul": 24, "tsc_shift": 28, "flags": 29}),
    "struct vcpu_guest_context": (5168, {
        "fpu_ctxt": 0, "flags": 512, "user_regs": 520, "trap_ctxt": 720, "ldt_base": 4816, "ldt_ents": 4824,
        "gdt_frames": 4832, "gdt_ents": 4960, "kernel_ss": 4968, "kernel_sp": 4976, "ctrlreg": 4984, "debugreg": 5048,
        "event_callback_eip": 5112, "failsafe_callback_eip": 5120, "syscall_callback_eip": 5128, "vm_assist": 5136,
        "fs_base": 5144, "gs_base_kernel": 5152, "gs_base_user": 5160}),
    "struct cpu_user_regs": (200, {
        "r15": 0, "r14": 8, "r13": 16, "r12": 24, "rbp": 32, "rbx": 40, "r11": 48, "r10": 56, "r9": 64, "r8": 72,
        "rax": 80, "rcx": 88, "rdx": 96, "rsi": 104, "rdi": 112, "error_code": 120, "entry_vector": 124, "rip": 128,
        "cs": 136, "saved_upcall_mask": 140, "rflags": 144, "rsp": 152, "ss": 160, "es": 168, "ds": 176, "fs": 184,
        "gs": 192}),
    "struct iret_context": (72, {
        "rax": 0, "r11": 8, "rcx": 16, "flags": 24, "rip": 32, "cs": 40, "rflags": 48, "rsp": 56, "ss": 64}),
    "struct trap_info": (16, {"vector": 0, "flags": 1, "cs": 2, "address": 8}),
    "struct multicall_entry": (64, {"op": 0, "result": 8, "args": 16}),
    "struct mmu_update": (16, {"ptr": 0, "val": 8}),
    "struct mmuext_op": (24, {"cmd": 0, "arg1": 8, "arg2": 16}),
    "struct xen_memory_reservation": (32, {
        "extent_start": 0, "nr_extents": 8, "extent_order": 16, "mem_flags": 20, "domid": 24}),
    "struct xen_memory_exchange": (72, {"in": 0, "out": 32, "nr_exchanged": 64}),
    "struct xen_machphys_mapping": (24, {"v_start": 0, "v_end": 8, "max_mfn": 16}),
    "struct xen_memory_map": (16, {"nr_entries": 0, "buffer": 8}),
    "struct xen_add_to_physmap": (24, {"domid": 0, "size": 2, "space": 4, "idx": 8, "gpfn": 16}),
    "struct sched_poll": (24, {"ports": 0, "nr_ports": 8, "timeout": 16}),
    "struct sched_remote_shutdown": (8, {"domain_id": 0, "reason": 4}),
    "struct vcpu_runstate_info": (48, {"state": 0, "state_entry_time": 8, "time": 16}),
    "struct vcpu_set_singleshot_timer": (16, {"timeout_abs_ns": 0, "flags": 8}),
    "struct vcpu_register_vcpu_info": (16, {"mfn": 0, "offset": 8, "rsvd": 12}),
    "struct evtchn_alloc_unbound": (8, {"dom": 0, "remote_dom": 2, "port": 4}),
    "struct evtchn_bind_interdomain": (12, {"remote_dom": 0, "remote_port": 4, "local_port": 8}),
    "struct evtchn_bind_virq": (12, {"virq": 0, "vcpu": 4, "port": 8}),
    "struct evtchn_bind_vcpu": (8, {"port": 0, "vcpu": 4}),
    "struct evtchn_status": (24, {
        "dom": 0, "port": 4, "status": 8, "vcpu": 12, "u.unbound.dom": 16, "u.interdomain.dom": 16,
        "u.interdomain.port": 20, "u.virq": 16}),
    "struct evtchn_init_control": (24, {"control_gfn": 0, "offset": 8, "vcpu": 12, "link_bits": 16}),
    "struct evtchn_fifo_control_block": (72, {"ready": 0, "head": 8}),
    "struct grant_entry_v1": (8, {"flags": 0, "domid": 2, "frame": 4}),
    "union grant_entry_v2": (16, {
        "hdr.flags": 0, "hdr.domid": 2, "full_page.frame": 8, "sub_page.page_off": 4, "sub_page.length": 6,
        "sub_page.frame": 8, "transitive.trans_domid": 4, "transitive.gref": 8}),
    "struct gnttab_map_grant_ref": (32, {
        "host_addr": 0, "flags": 8, "ref": 12, "dom": 16, "status": 18, "handle": 20, "dev_bus_addr": 24}),
    "struct gnttab_unmap_grant_ref": (24, {"host_addr": 0, "dev_bus_addr": 8, "handle": 16, "status": 20}),
    "struct gnttab_setup_table": (24, {"dom": 0, "nr_frames": 4, "status": 8, "frame_list": 16}),
    "struct gnttab_transfer": (24, {"mfn": 0, "domid": 8, "ref": 12, "status": 16}),
    "struct gnttab_copy": (40, {
        "source.u.ref": 0, "source.domid": 8, "source.offset": 10, "dest": 16, "len": 32, "flags": 34, "status": 36}),
    "struct gnttab_query_size": (16, {"dom": 0, "nr_frames": 4, "max_nr_frames": 8, "status": 12}),
    "struct gnttab_unmap_and_replace": (24, {"host_addr": 0, "new_addr": 8, "handle": 16, "status": 20}),
    "struct gnttab_set_version": (4, {}),
    "struct gnttab_get_status_frames": (16, {"nr_frames": 0, "dom": 4, "status": 6, "frame_list": 8}),
    "struct callback_register": (16, {"type": 0, "flags": 2, "address": 8}),
    "struct xen_compile_info": (144, {"compiler": 0, "compile_by": 64, "compile_domain": 80, "compile_date": 112}),
    "struct hvm_start_info": (56, {
        "magic": 0, "version": 4, "flags": 8, "nr_modules": 12, "modlist_paddr": 16, "cmdline_paddr": 24,
        "rsdp_paddr": 32, "memmap_paddr": 40, "memmap_entries": 48}),
    "struct hvm_modlist_entry": (32, {}),
    "struct hvm_memmap_table_entry": (24, {}),
    "struct blkif_request": (112, {
        "operation": 0, "nr_segments": 1, "handle": 2, "id": 8, "sector_number": 16, "seg": 24}),
    "struct blkif_request_segment": (8, {"gref": 0, "first_sect": 4, "last_sect": 5}),
    "struct blkif_request_discard": (32, {"flag": 1, "id": 8, "sector_number": 16, "nr_sectors": 24}),
    "struct blkif_request_indirect": (64, {
        "indirect_op": 1, "nr_segments": 2, "id": 8, "sector_number": 16, "handle": 24, "indirect_grefs": 28}),
    "struct blkif_response": (16, {"id": 0, "operation": 8, "status": 10}),
    "struct netif_tx_request": (12, {"gref": 0, "offset": 4, "flags": 6, "id": 8, "size": 10}),
    "struct netif_tx_response": (4, {"id": 0, "status": 2}),
    "struct netif_rx_request": (8, {"id": 0, "gref": 4}),
    "struct netif_rx_response": (8, {"id": 0, "offset": 2, "flags": 4, "status": 6}),
    "struct netif_extra_info": (8, {"type": 0, "flags": 1, "u.gso.size": 2, "u.gso.type": 4, "u.gso.features": 6}),
    "struct xen_sring_hdr": (64, {"req_prod": 0, "req_event": 4, "rsp_prod": 8, "rsp_event": 12}),
    "struct xencons_interface": (3092, {
        "in": 0, "out": 1024, "in_cons": 3072, "in_prod": 3076, "out_cons": 3080, "out_prod": 3084,
        "connection": 3088}),
    "struct xsd_sockmsg": (16, {"type": 0, "req_id": 4, "tx_id": 8, "len": 12}),
    "struct xenstore_domain_interface": (2076, {
        "req": 0, "rsp": 1024, "req_cons": 2048, "req_prod": 2052, "rsp_cons": 2056, "rsp_prod": 2060,
        "server_features": 2064, "connection": 2068, "error": 2072}),
    "struct xen_sysctl": (136, {"cmd": 0, "interface_version": 4, "u": 8}),
    "struct xen_domctl": (144, {"cmd": 0, "interface_version": 4, "domain": 8, "u": 16}),
}

VIEWS = {"tools": abi_headers.AS_TOOLS, "guest": abi_headers.AS_GUEST, "old guest": (), "core": abi_headers.AS_CORE}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_layouts_are_the_documented_ones(view: tuple[str, ...]) -> None:
    """The size and the offsets of what guests share with us, in every view of the headers."""
    asked, wanted = {}, {}
    for name, (size, offsets) in FACTS.items():
        asked[name], wanted[name] = f"sizeof({name})", size
        for path, offset in offsets.items():
            asked[f"{name}.{path}"], wanted[f"{name}.{path}"] = f"__builtin_offsetof({name}, {path})", offset
    headers = abi_headers.own_headers()
    assert abi_probe.integers(headers, [*view, "-I", str(abi_headers.INCLUDE)], asked) == wanted


@pytest.fixture(scope="module")
def cdef() -> str:
    """The headers as cffi gets them."""
    return abi_headers.preprocess(abi_headers.own_headers(),
                                  ["-P", *abi_headers.AS_CDEF, "-I", str(abi_headers.INCLUDE)])


def test_cffi_sees_what_the_core_sees(cdef: str) -> None:
    """The text for cffi alone, without a compiler's help, has every constant and layout of the core."""
    found = abi_headers.declared(abi_headers.own_headers(), abi_headers.INCLUDE, abi_headers.AS_CDEF)
    ffi = cffi.FFI()
    # One structure of pointers to all types: asking for a type by its name costs 10 ms each.
    pointers = "".join(f"{name} *m{index};\n" for index, name in enumerate(found.types))
    ffi.cdef(f"{cdef}\nstruct every_type {{\n{pointers}}};")
    flags = [*abi_headers.AS_CORE, "-I", str(abi_headers.INCLUDE)]
    asked = {name: f"sizeof({name})" for name in found.types} | {name: name for name in found.constants}
    values = abi_probe.integers(abi_headers.own_headers(), flags, asked)
    assert len(found.types) > 250 and len(found.constants) > 900

    library = ffi.dlopen(None)
    members = ffi.typeof("struct every_type").fields
    sizes = {name: ffi.sizeof(member.type.item) for name, (_, member) in zip(found.types, members, strict=True)}
    assert {name: getattr(library, name) for name in found.constants} | sizes == values
    # Types of the rings' macros are for C guests: cffi works with the plain structures.
    guest = abi_headers.declared(abi_headers.own_headers(), abi_headers.INCLUDE, abi_headers.AS_CORE)
    assert all(re.search("ring", name) for name in guest.types.keys() - found.types.keys())
    assert guest.constants == found.constants


def test_nothing_is_hidden_from_cffi_by_a_macro(cdef: str) -> None:
    """A number as a macro would be gone after the preprocessor, and Python would have to write it a second time."""
    found = abi_headers.declared(abi_headers.own_headers(), abi_headers.INCLUDE, abi_headers.AS_CORE)
    flags = [*abi_headers.AS_CORE, "-I", str(abi_headers.INCLUDE)]
    numbers = abi_probe.integers(abi_headers.own_headers(), flags, {name: name for name in found.macros})
    # Those that sources test with #if and #ifdef can be nothing else.
    assert set(numbers) == {"__XEN_INTERFACE_VERSION__", "__XEN_LATEST_INTERFACE_VERSION__",
                            "XEN_HAVE_PV_GUEST_ENTRY", "XEN_HAVE_PV_UPCALL_MASK"}
    assert "__attribute__" not in cdef and "#" not in cdef


@pytest.mark.parametrize("header", abi_headers.own_headers())
def test_each_header_stands_alone(header: str) -> None:
    """A header that needs another one before it would break a guest that includes only this one. The order of
    inclusion must not matter, and a second inclusion must do no harm."""
    source = f"#include <{header}>\n#include <{header}>\nint unused;\n"
    for view in VIEWS.values():
        done = subprocess.run(["gcc", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", *view,
                               "-I", str(abi_headers.INCLUDE), "-x", "c", "-"],
                              input=source, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_headers_do_not_reach_outside_their_folder() -> None:
    """Guests take the folder as it is: it includes itself, <stddef.h> and <stdint.h>, and nothing of the core."""
    for path in abi_headers.INCLUDE.glob("xen/**/*"):
        if path.suffix not in (".h", ".def"):
            continue
        for quoted, system in re.findall(r'^\s*#\s*include\s+(?:"(.+)"|<(.+)>)', path.read_text(), re.MULTILINE):
            if quoted:
                target = (path.parent / quoted).resolve()
                assert target.is_file() and target.is_relative_to(abi_headers.INCLUDE / "xen"), (path, quoted)
            else:
                assert system in ("stddef.h", "stdint.h"), (path, system)


def test_assembler_sources_get_the_numbers(tmp_path: Path) -> None:
    """A guest's start code is assembler: it needs calls, notes, selectors and flags from the same tables."""
    headers = ["xen/xen.h", "xen/elfnote.h", "xen/features.h", "xen/errno.h", "xen/hvm/start_info.h"]
    names = ["__HYPERVISOR_iret", "__HYPERVISOR_mca", "XEN_ELFNOTE_HYPERCALL_PAGE", "XENFEAT_dom0", "XEN_ENOSYS",
             "FLAT_KERNEL_SS", "VGCF_in_syscall", "VIRQ_DEBUG", "XEN_HVM_START_MAGIC_VALUE"]
    source = "".join(f"#include <{header}>\n" for header in headers) + "".join(f".quad {name}\n" for name in names)
    subprocess.run(["gcc", "-c", "-D__ASSEMBLY__", "-I", str(abi_headers.INCLUDE), "-x", "assembler-with-cpp", "-",
                    "-o", str(tmp_path / "numbers.o")], input=source, text=True, check=True)
    # A name that is no number here would be left to the linker.
    assert not subprocess.run(["nm", "-u", str(tmp_path / "numbers.o")], capture_output=True, check=True).stdout
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", str(tmp_path / "numbers.o"), str(tmp_path / "numbers")],
                   check=True)
    raw = (tmp_path / "numbers").read_bytes()
    assembled = [int.from_bytes(raw[at:at + 8], "little") for at in range(0, len(raw), 8)]
    values = abi_probe.integers(headers, ["-I", str(abi_headers.INCLUDE)], {name: name for name in names})
    assert assembled == [values[name] for name in names]


@pytest.mark.parametrize("optimise", ["-O0", "-O2"])
def test_hypercall_stubs_can_name_the_number_in_assembler(tmp_path: Path, optimise: str) -> None:
    """Mini-OS and its descendants make the address of a stub from the text of __HYPERVISOR_x, in file after file."""
    source = """
        #include <xen/xen.h>
        #define TEXT_(x) #x
        #define TEXT(x) TEXT_(x)
        long NAME(void)
        {
            long offset;
            __asm__("mov $(" TEXT(__HYPERVISOR_sched_op) " * 32), %0" : "=r"(offset));
            return offset;
        }
    """
    (tmp_path / "one.c").write_text(source.replace("NAME", "one"))
    (tmp_path / "two.c").write_text(source.replace("NAME", "two")
                                    + "long one(void); int main(void) { return !(one() == 928 && two() == 928); }")
    subprocess.run(["gcc", "-std=gnu11", optimise, "-Wall", "-Werror", "-I", str(abi_headers.INCLUDE),
                    str(tmp_path / "one.c"), str(tmp_path / "two.c"), "-o", str(tmp_path / "stubs")], check=True)
    subprocess.run([str(tmp_path / "stubs")], check=True)


def test_errno_can_be_expanded_under_other_names() -> None:
    """Guests make errno names of their own libc from the table, before or after they have the usual ones."""
    source = ("#include <xen/errno.h>\n"
              "enum {\n#define XEN_ERRNO(name, value) MY_##name = value,\n#include <xen/errno.h>\n};\n"
              "_Static_assert((int)MY_ENOSYS == (int)XEN_ENOSYS && MY_EPERM == 1, \"\");\n")
    subprocess.run(["gcc", "-std=gnu11", "-Wall", "-Werror", "-fsyntax-only", "-I", str(abi_headers.INCLUDE), "-x", "c",
                    "-"], input=source, text=True, check=True)
