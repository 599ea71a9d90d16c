# The smallest guest there is: a 64 KiB ROM that ticks, says so on the serial line, and checks its own memory.
#
# Each tick prints "T <seq> <bad>" in hex: seq counts ticks, so a copy that ran twice or lost time shows; bad counts
# pages that did not hold what the guest last wrote there, so a transfer that lost a page shows. Per tick it rewrites
# `pages` pages of a working set of `wss` pages that begins at 1 MiB. The three numbers stand in a table at 0xff00,
# where the builder patches them.
#
# RAM: 0x510 seq, 0x514 next page, 0x518 bad, 0x51c round (page n holds the round in which it was last written)

        .set    SEQ, 0x510
        .set    NEXT, 0x514
        .set    BAD, 0x518
        .set    ROUND, 0x51c
        .set    COM1, 0x3f8
        .set    FIRST_PAGE, 0x100000
        .set    HUNDRED_HZ, 11932       # the timer's divisor

        .code16
        .globl  _start
        .org    0
_start: cli
        cld
        xorw    %ax, %ax
        movw    %ax, %ss
        movw    $0x7c00, %sp
        inb     $0x92, %al              # gate A20: memory above 1 MiB is not folded back
        orb     $2, %al
        outb    %al, $0x92

        # Visit protected mode once, to give ds a limit of 4 GiB that stays after coming back.
        lgdtl   %cs:gdt_register
        movl    %cr0, %eax
        orb     $1, %al
        movl    %eax, %cr0
        jmp     1f
1:      movw    $8, %bx
        movw    %bx, %ds
        andb    $0xfe, %al
        movl    %eax, %cr0
        jmp     2f
2:      xorw    %ax, %ax
        movw    %ax, %ds

        # Both interrupt controllers: vectors from 8 and from 0x70, only the timer open.
        movb    $0x11, %al
        outb    %al, $0x20
        outb    %al, $0xa0
        movb    $8, %al
        outb    %al, $0x21
        movb    $0x70, %al
        outb    %al, $0xa1
        movb    $4, %al
        outb    %al, $0x21
        movb    $2, %al
        outb    %al, $0xa1
        movb    $1, %al
        outb    %al, $0x21
        outb    %al, $0xa1
        movb    $0xfe, %al
        outb    %al, $0x21
        movb    $0xff, %al
        outb    %al, $0xa1

        # The local APIC on, its LINT0 as ExtINT: else no tick ever arrives.
        movl    $0xfee000f0, %edi
        movl    $0x1ff, %eax
        addr32 movl %eax, (%edi)
        movl    $0xfee00350, %edi
        movl    $0x700, %eax
        addr32 movl %eax, (%edi)

        movw    $tick, 0x20
        movw    $0xf000, 0x22
        movl    $0, SEQ
        movl    $0, NEXT
        movl    $0, BAD
        movl    $1, ROUND

        movb    $0x34, %al              # timer 0, periodic
        outb    %al, $0x43
        movw    %cs:divisor, %ax
        testw   %ax, %ax
        jnz     3f
        movw    $HUNDRED_HZ, %ax
3:      outb    %al, $0x40
        movb    %ah, %al
        outb    %al, $0x40
        sti
4:      hlt
        jmp     4b

tick:   pushal
        incl    SEQ
        movl    %cs:pages, %ecx
        testl   %ecx, %ecx
        jz      9f
        movl    NEXT, %ebx
5:      movl    %ebx, %edi
        shll    $12, %edi
        addl    $FIRST_PAGE, %edi
        movl    ROUND, %eax
        decl    %eax
        addr32 cmpl %eax, (%edi)        # what the round before left here
        je      6f
        incl    BAD
6:      incl    %eax
        addr32 movl %eax, (%edi)
        incl    %ebx
        cmpl    %cs:wss, %ebx
        jb      7f
        xorl    %ebx, %ebx
        incl    ROUND
7:      decl    %ecx
        jnz     5b
        movl    %ebx, NEXT
9:      movw    $COM1, %dx
        movb    $'T', %al
        outb    %al, %dx
        movl    SEQ, %ebx
        call    hex
        movl    BAD, %ebx
        call    hex
        movb    $10, %al
        outb    %al, %dx
        movb    $0x20, %al              # end of interrupt
        outb    %al, $0x20
        popal
        iret

hex:    movb    $' ', %al               # a space and ebx in eight digits
        outb    %al, %dx
        movw    $8, %cx
1:      roll    $4, %ebx
        movb    %bl, %al
        andb    $15, %al
        addb    $'0', %al
        cmpb    $'9', %al
        jbe     2f
        addb    $39, %al
2:      outb    %al, %dx
        decw    %cx
        jnz     1b
        ret

        .p2align 3
gdt:    .quad   0
        .quad   0x00cf92000000ffff      # data, 4 GiB
gdt_register:
        .word   15
        .long   0xf0000 + gdt

        .org    0xff00
pages:  .long   0                       # written per tick
wss:    .long   0                       # pages in the working set
divisor: .long  0                       # of the timer; 0: 100 ticks a second, 65535: 18

        .org    0xfff0
        ljmp    $0xf000, $_start
        .org    0x10000
