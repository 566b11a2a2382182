/* Where the other processors start: real mode at AP_PAGE (pc/pc.h), to which pc_start_aps copies this. Protected mode, then to_long_mode; each
 * takes a number and a stack, and calls pc_ap_main(number). */
    .section .rodata
    .globl ap_start, ap_end
    .set AP, 0x8000
    .code16
ap_start:
    cli
    xor %ax, %ax
    mov %ax, %ds
    lgdtl AP + (ap_gdt_pointer - ap_start)
    mov %cr0, %eax
    or $1, %eax
    mov %eax, %cr0
    ljmpl $0x08, $AP + (1f - ap_start)
    .code32
1:  mov $0x10, %ax
    mov %ax, %ds
    mov %ax, %es
    mov %ax, %ss
    mov $ap_go, %eax
    jmp *%eax
    .balign 8
ap_gdt:
    .quad 0
    .quad 0x00cf9b000000ffff
    .quad 0x00cf93000000ffff
ap_gdt_pointer:
    .word ap_gdt_pointer - ap_gdt - 1
    .long AP + (ap_gdt - ap_start)
ap_end:

    .text
    .code32
ap_go:
    mov $1, %esi
    lock xadd %esi, pc_ap_number                /* 1 up */
    cmp $8, %esi
    jae 3f
    mov %esi, %eax
    shl $14, %eax
    lea ap_stacks(%eax), %esp
    call to_long_mode
    .code64
    mov %esi, %edi
    xor %ebp, %ebp
    call pc_ap_main
3:  cli
    hlt
    jmp 3b

    .data
    .globl pc_ap_number
pc_ap_number: .long 1
    .bss
    .balign 16
ap_stacks: .skip 8 * 16384
