/* Entries of exceptions and interrupts, 32 bits: makes struct pc_frame, calls pc_trap(frame), and returns. */
#include "stubs.h"

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
