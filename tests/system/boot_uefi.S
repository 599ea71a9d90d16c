# What UEFI starts: a PE file of one section that says its word on the serial line again and again.
# The word, with a zero, is appended by the builder; nothing in it needs to be relocated.

        .set    AT, 0x1000              # where the section lies in memory; in the file at 0x200
        .set    SIZE, 0x200

        .code64
        .globl  _start
_start: .ascii  "MZ"
        .org    0x3c
        .long   header
header: .ascii  "PE\0\0"
        .word   0x8664, 1               # x86-64, one section
        .long   0, 0, 0
        .word   sections - optional, 0x22
optional:
        .word   0x20b, 0
        .long   SIZE, 0, 0, AT, AT
        .quad   0
        .long   0x1000, 0x200
        .word   0, 0, 0, 0, 0, 0
        .long   0, AT + 0x1000, 0x200, 0
        .word   10, 0                   # a UEFI application
        .quad   0, 0, 0, 0
        .long   0, 6
        .quad   0, 0, 0, 0, 0, 0
sections:
        .ascii  ".text\0\0\0"
        .long   SIZE, AT, SIZE, 0x200, 0, 0
        .word   0, 0
        .long   0x60000020

        .org    0x200
say:    leaq    word(%rip), %rsi
1:      movb    (%rsi), %bl
        incq    %rsi
        testb   %bl, %bl
        jz      3f
2:      movw    $0x3fd, %dx
        inb     %dx, %al
        testb   $0x20, %al
        jz      2b
        movb    %bl, %al
        movw    $0x3f8, %dx
        outb    %al, %dx
        jmp     1b
3:      movl    $10000000, %ecx
4:      decl    %ecx
        jnz     4b
        jmp     say
word:
