/*
 * Ways into the kernel and out of it: stubs for all vectors and callbacks, the common path, user mode, trap_try's escape.
 *
 * Xen pushes, from high to low: ss, rsp, rflags, cs (with the old upcall mask), rip, an error code where the vector has one, r11, rcx.
 * The stack is then turned into a struct trap_regs (guest/trap.h), whose `error` word is always there.
 *
 * The way out is always the iret hypercall, never a native iretq. A native return has to unmask upcalls first, look for pending
 * ones, and then return; an event between the look and the return nests on the same stack, and under load nests without bound. The
 * hypercall restores the mask from IF of the frame, looks, and returns as one step. It also is the only way to user mode.
 */
#define __ASSEMBLY__
#include <guest/asm.h>
#include <xen/xen.h>
#define VCPU_USER_SP 8                      /* struct cpu */
#define X86_IF 0x200

    .text

.macro CALLBACK name, vector
    .globl \name
    .balign 16
\name:
    pop %rcx
    pop %r11
    push $0
    movw $\vector, 4(%rsp)
    jmp trap_common
.endm

    .globl trap_stubs
    .balign 16
trap_stubs:                                 /* 16 bytes each, vector 0 to 255 */
    vector = 0
    .rept 256
    pop %rcx
    pop %r11
    .if (vector == 8) | ((vector >= 10) & (vector <= 14)) | (vector == 17) | (vector == 21)
    .else
    push $0
    .endif
    movb $vector, 4(%rsp)                   /* Xen pushes 32 bits of error code as 64: the upper half is free */
    jmp trap_common
    .balign 16
    vector = vector + 1
    .endr

    CALLBACK event_entry, 256
    CALLBACK syscall_entry, 258
    CALLBACK syscall32_entry, 259
    CALLBACK sysenter_entry, 260

    .globl failsafe_entry
    .balign 16
failsafe_entry:                             /* has ds, es, fs, gs between r11 and rip */
    pop %rcx
    pop %r11
    add $32, %rsp
    push $0
    movw $257, 4(%rsp)

trap_common:
    cld
    push %rdi
    push %rsi
    push %rdx
    push %rcx
    push %rax
    push %r8
    push %r9
    push %r10
    push %r11
    push %rbx
    push %rbp
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, %rdi
    mov %rsp, %rbx
    and $-16, %rsp
    call trap_dispatch
    mov %rbx, %rsp

trap_return:
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbp
    pop %rbx
    pop %r11
    pop %r10
    pop %r9
    pop %r8
    pop %rax
    pop %rcx
    pop %rdx
    pop %rsi
    pop %rdi
    movq $0, (%rsp)                         /* the error slot becomes the flags of struct iret_context */
    jmp hypercall_page + __HYPERVISOR_iret * 32     /* pushes rcx, r11, rax */

/* bool trap_run(struct trap_probe *probe, void (*fn)(void *), void *arg): was it ended by a trap? probe starts with the stack pointer. */
    .globl trap_run
    .balign 16
trap_run:
    PUSH_CALLEE_SAVED
    mov %rsp, (%rdi)
    mov %rsi, %rax
    mov %rdx, %rdi
    sub $8, %rsp
    call *%rax
    add $8, %rsp
    xor %eax, %eax
1:  POP_CALLEE_SAVED
    ret
    .globl trap_resume
trap_resume:                                /* the dispatcher returns here with rsp = probe's */
    mov $1, %eax
    jmp 1b

/* u64 user_enter(u64 rip, u64 rsp, u64 arg): until user_leave. Entries from user mode use the stack below what is saved here. */
    .globl user_enter
    .balign 16
user_enter:
    PUSH_CALLEE_SAVED
    mov %rsp, %gs:VCPU_USER_SP
    mov %rdi, %rbx
    mov %rsi, %rbp
    mov %rdx, %r12
    mov $FLAT_KERNEL_SS, %edi
    mov %rsp, %rsi
    call hypercall_page + __HYPERVISOR_stack_switch * 32
    push $FLAT_USER_SS
    push %rbp
    push $X86_IF | 2
    push $FLAT_USER_CS
    push %rbx
    push $0
    mov %r12, %rdi
    xor %eax, %eax                          /* nothing of the kernel's in the user's registers */
    xor %ebx, %ebx
    xor %ecx, %ecx
    xor %edx, %edx
    xor %esi, %esi
    xor %ebp, %ebp
    xor %r8d, %r8d
    xor %r9d, %r9d
    xor %r10d, %r10d
    xor %r11d, %r11d
    xor %r12d, %r12d
    xor %r13d, %r13d
    xor %r14d, %r14d
    xor %r15d, %r15d
    jmp hypercall_page + __HYPERVISOR_iret * 32

/* void user_leave(u64 result): returns from user_enter, on its stack, with events masked. */
    .globl user_leave
    .balign 16
user_leave:
    mov %rdi, %rax
    mov %gs:VCPU_USER_SP, %rsp
    movq $0, %gs:VCPU_USER_SP
    POP_CALLEE_SAVED
    ret

/* Where a user function returns to. */
    .section .user.text, "ax"
    .globl user_return
user_return:
    mov %rax, %rdi
    xor %eax, %eax                          /* USER_SYS_EXIT */
    syscall
    ud2

    .section .note.GNU-stack, "", @progbits
