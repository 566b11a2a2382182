/* Entries of exceptions and interrupts: each vector's stub pushes what makes struct pc_frame, calls pc_trap(frame), and returns. */
    .text
    .altmacro
    .macro stub vector
    .balign 16
    .if (\vector == 8) || ((\vector >= 10) && (\vector <= 14)) || (\vector == 17)
    .else
    push $0
    .endif
    push $\vector
    jmp common
    .endm

    .globl pc_stubs
    .balign 16
pc_stubs:
    .set n, 0
    .rept 256
    stub %n
    .set n, n + 1
    .endr

common:
    push %eax
    push %ecx
    push %edx
    push %ebx
    push %ebp
    push %esi
    push %edi
    cld
    mov %esp, %ebx
    and $-16, %esp
    sub $12, %esp
    push %ebx
    call pc_trap
    mov %ebx, %esp
    pop %edi
    pop %esi
    pop %ebp
    pop %ebx
    pop %edx
    pop %ecx
    pop %eax
    add $8, %esp
    iret
