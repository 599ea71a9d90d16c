# A 64 KiB ROM that proves one thing: this processor, as QEMU shows it, runs 64-bit code.
# Real mode -> protected mode -> four-level paging -> long mode -> 64-bit arithmetic -> isa-debug-exit at port 0xf4.
# QEMU's exit status is (value << 1) | 1: 0x69 means proven. tests/agent/test_qemu_accelerator.py assembles this file
# and compares it with the bytes in accelerator.py.
        .code16
        .globl  _start
_start: cli
        lgdtl   %cs:gdt_register
        movl    %cr0, %eax
        orb     $1, %al
        movl    %eax, %cr0
        ljmpl   $0x08, $0xf0000 + protected

        .code32
protected:
        movl    $0x10, %eax
        movl    %eax, %ds
        movl    %eax, %es
        movl    %eax, %ss
        cld
        xorl    %eax, %eax              # three empty page tables at 0x1000
        movl    $0x1000, %edi
        movl    $0xc00, %ecx
        rep stosl
        movl    $0x2003, 0x1000         # one 2 MiB page: what is at 0 stays at 0
        movl    $0x3003, 0x2000
        movl    $0x0083, 0x3000
        movl    $0x1000, %eax
        movl    %eax, %cr3
        movl    %cr4, %eax
        orl     $0x20, %eax             # PAE
        movl    %eax, %cr4
        movl    $0xc0000080, %ecx       # EFER.LME
        rdmsr
        orl     $0x100, %eax
        wrmsr
        movl    %cr0, %eax
        orl     $0x80000000, %eax
        movl    %eax, %cr0
        ljmpl   $0x18, $0xf0000 + long_mode

        .code64
long_mode:
        rdmsr                           # EFER.LMA says so itself...
        shrl    $10, %eax
        andl    $1, %eax
        shlq    $40, %rax               # ...and only 64-bit registers survive this
        shrq    $40, %rax
        imull   $0x34, %eax, %eax
        movl    $0xf4, %edx
        outb    %al, %dx
halt:   hlt
        jmp     halt

        .p2align 3
gdt:    .quad   0
        .quad   0x00cf9a000000ffff      # 0x08: 32-bit code
        .quad   0x00cf92000000ffff      # 0x10: data
        .quad   0x00af9a000000ffff      # 0x18: 64-bit code
gdt_register:
        .word   . - gdt - 1
        .long   0xf0000 + gdt
        .org    0xfff0
        .code16
        ljmp    $0xf000, $_start
        .org    0x10000
