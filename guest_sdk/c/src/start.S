/*
 * The first instructions, the notes for the domain builder, and the hypercall page.
 *
 * State at entry (public ABI): rsi = start_info, rsp = top of a stack page of the builder's, flat selectors, upcalls masked.
 */
#define __ASSEMBLY__
#include <xen/elfnote.h>

#define BOOT_STACK 32768

    .section .text.start, "ax"
    .globl _start
    .type _start, @function
_start:
    cld
    mov %rsi, %rdi
    mov $boot_stack + BOOT_STACK, %rsp      /* the builder's has one page */
    xor %ebp, %ebp
    call guest_start
    ud2
    .size _start, . - _start

    .section .text.hypercall_page, "ax"
    .balign 4096
    .globl hypercall_page
hypercall_page:                             /* the builder writes 128 stubs of 32 bytes */
    .skip 4096, 0xcc

    .section .bss.page_aligned, "aw", @nobits
    .balign 4096
boot_stack:
    .skip BOOT_STACK
    .globl shared_info                      /* its frame is mapped here (start.c) */
shared_info:
    .skip 4096

.macro NOTE type, value:vararg
    .balign 4
    .long 4, 2f - 1f, \type
    .asciz "Xen"
1:  \value
2:  .balign 4
.endm

    .section .note.Xen, "a", @note
    NOTE XEN_ELFNOTE_GUEST_OS, .asciz "xenlike-c"
    NOTE XEN_ELFNOTE_GUEST_VERSION, .asciz "1"
    NOTE XEN_ELFNOTE_XEN_VERSION, .asciz "xen-3.0"
    NOTE XEN_ELFNOTE_LOADER, .asciz "generic"
    NOTE XEN_ELFNOTE_VIRT_BASE, .quad VIRT_BASE
    NOTE XEN_ELFNOTE_PADDR_OFFSET, .quad 0
    NOTE XEN_ELFNOTE_ENTRY, .quad _start
    NOTE XEN_ELFNOTE_HYPERCALL_PAGE, .quad hypercall_page
    NOTE XEN_ELFNOTE_FEATURES, .asciz "!writable_page_tables|pae_pgdir_above_4gb"

    .section .note.GNU-stack, "", @progbits
