/* Round trips between user and kernel. Each *_trips takes (iterations) and returns when user mode has made so many. */
    .text
    .globl syscall_trips, int_trips, int_entry, syscall_entry

/* Keeps for `back` what the caller wants kept, and the iterations (rdi) in r12. */
.macro begin_trips
    push %rbx
    push %rbp
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, kernel_rsp(%rip)
    mov %rdi, %r12
.endm

/* rdi: iterations. Goes to level 3 by sysret; r12 there counts down; rax 1 ends. */
syscall_trips:
    begin_trips
    lea user_syscalls(%rip), %rcx
    mov $2, %r11d
    lea user_stack_top(%rip), %rsp
    sysretq

user_syscalls:
    xor %eax, %eax
1:  syscall
    dec %r12
    jnz 1b
    mov $1, %eax
    syscall

syscall_entry:
    test %eax, %eax
    jnz back
    sysretq

back:
    mov kernel_rsp(%rip), %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbp
    pop %rbx
    mov $0x10, %eax
    mov %eax, %ss
    ret

/* The same by int 0x80 and iret. */
int_trips:
    begin_trips
    push $0x23
    lea user_stack_top(%rip), %rax
    push %rax
    push $2
    push $0x2b
    lea user_ints(%rip), %rax
    push %rax
    iretq

user_ints:
    xor %eax, %eax
1:  int $0x80
    dec %r12
    jnz 1b
    mov $1, %eax
    int $0x80

int_entry:
    test %eax, %eax
    jnz back
    iretq

    .data
    .balign 16
kernel_rsp: .quad 0
    .skip 4096
user_stack_top:
