/* Entry of a 32-bit image by multiboot: eax the magic number, ebx the information. Flat segments; the loader's GDT is not to be relied on. */
    .section .multiboot, "a"
    .balign 4
    .long 0x1badb002, 3, -(0x1badb002 + 3)      /* modules on pages, memory information */

    .section .text.start, "ax"
    .globl _start
_start:
    cli
    cld
    lgdt gdt_pointer
    ljmp $0x08, $1f
1:  mov $0x10, %cx
    mov %cx, %ds
    mov %cx, %es
    mov %cx, %ss
    mov %cx, %fs
    mov %cx, %gs
    mov $boot_stack_top, %esp
    xor %ebp, %ebp
    push $0
    push $0
    push %ebx
    push %eax
    call pc_main
2:  hlt
    jmp 2b

    .section .data
    .globl gdt
    .balign 8
gdt:
    .quad 0
    .quad 0x00cf9b000000ffff                    /* 08: code */
    .quad 0x00cf93000000ffff                    /* 10: data */
    .quad 0x00cffb000000ffff                    /* 18: code, level 3 */
    .quad 0x00cff3000000ffff                    /* 20: data, level 3 */
    .quad 0, 0                                  /* 28: TSS */
gdt_pointer:
    .word gdt_pointer - gdt - 1
    .long gdt

    .section .bss.page_aligned, "aw", @nobits
    .balign 4096
    .skip 16384
boot_stack_top:
