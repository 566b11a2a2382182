/* pc_stubs: 16 bytes for each vector, of 32 or 64 bits. Pushes 0 where the CPU pushes no error code, then the vector, and goes to `common`. */
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
