/* Entry of a 64-bit image by PVH's note: 32-bit protected mode, paging off, ebx the start information. Builds page tables that map the first
 * 4 GiB one to one with large pages, and goes to 64-bit mode. */
    .section .note.Xen, "a", @note
    .balign 4
    .long 4, 8, 18                              /* "Xen", 8 bytes, XEN_ELFNOTE_PHYS32_ENTRY */
    .asciz "Xen"
    .quad _start

    .section .text.start, "ax"
    .code32
    .globl _start
_start:
    cli
    cld
    mov $boot_stack_top, %esp
    mov %ebx, %esi

    mov $pdpt + 7, %eax                         /* present, writable, user: the lowest level decides */
    mov %eax, pml4
    mov $pd + 7, %eax
    mov $pdpt, %edi
    mov $4, %ecx
1:  mov %eax, (%edi)
    add $0x1000, %eax
    add $8, %edi
    loop 1b
    mov $0x83, %eax                             /* present, writable, 2 MiB */
    mov $pd, %edi
    mov $2048, %ecx
2:  mov %eax, (%edi)
    add $0x200000, %eax
    add $8, %edi
    loop 2b
    call to_long_mode
    .code64
    mov %esi, %esi
    xor %edi, %edi
    xor %ebp, %ebp
    call pc_main
3:  hlt
    jmp 3b

/* From 32-bit protected mode with paging off to 64-bit mode; returns there (the stack holds 4 bytes of return address). Keeps esi. */
    .code32
    .globl to_long_mode
to_long_mode:
    mov %cr4, %eax
    or $0x620, %eax                             /* PAE, OSFXSR, OSXMMEXCPT */
    mov %eax, %cr4
    mov $pml4, %eax
    mov %eax, %cr3
    mov $0xc0000080, %ecx
    rdmsr
    or $0x901, %eax                             /* SCE, LME, NXE */
    wrmsr
    mov %cr0, %eax
    and $~0x6000000c, %eax                      /* not EM, TS, CD, NW */
    or $0x80010022, %eax                        /* PG, WP, NE, MP */
    mov %eax, %cr0
    lgdt gdt_pointer
    ljmp $0x08, $4f
    .code64
4:  mov $0x10, %ecx
    mov %ecx, %ds
    mov %ecx, %es
    mov %ecx, %ss
    xor %ecx, %ecx
    mov %ecx, %fs
    mov %ecx, %gs
    mov (%rsp), %eax
    lea 4(%rsp), %rsp
    jmp *%rax

    .section .data
    .globl gdt, gdt_pointer
    .balign 8
gdt:
    .quad 0
    .quad 0x00af9b000000ffff                    /* 08: code, 64-bit */
    .quad 0x00cf93000000ffff                    /* 10: data */
    .quad 0x00cffb000000ffff                    /* 18: code, level 3, 32-bit */
    .quad 0x00cff3000000ffff                    /* 20: data, level 3 */
    .quad 0x00affb000000ffff                    /* 28: code, level 3, 64-bit */
    .fill 16, 8, 0                              /* 30: a TSS for each CPU */
gdt_pointer:
    .word gdt_pointer - gdt - 1
    .quad gdt

    .section .bss.page_aligned, "aw", @nobits
    .balign 4096
    .globl pml4, pd
pml4: .skip 4096
pdpt: .skip 4096
pd:   .skip 4 * 4096
    .skip 65536
    .globl boot_stack_top
boot_stack_top:
