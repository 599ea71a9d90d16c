# The smallest guest there is: a 64 KiB ROM that ticks, says so on the serial line, and checks its own memory.
#
# Each tick prints "T <seq> <bad>" in hex: seq counts ticks, so a copy that ran twice or lost time shows; bad counts
# pages that did not hold what the guest last wrote there, so a transfer that lost a page shows. Per tick it rewrites
# `pages` pages of a working set of `wss` pages that begins at 1 MiB. If there is to be noise, the rest of each of those
# pages is random from the beginning, and other at each boot: nothing makes it smaller. If it is to know the power button (of a q35), it
# looks at each tick whether that was pressed, and switches itself off. What it is told stands in a table at 0xff00,
# where the builder patches it.
#
# RAM: 0x510 seq, 0x514 next page, 0x518 bad, 0x51c round (page n holds the round in which it was last written)

        .set    SEQ, 0x510
        .set    NEXT, 0x514
        .set    BAD, 0x518
        .set    ROUND, 0x51c
        .set    COM1, 0x3f8
        .set    FIRST_PAGE, 0x100000
        .set    HUNDRED_HZ, 11932       # the timer's divisor
        .set    PMBASE, 0x8000f840      # in the configuration of q35's LPC bridge: where its power management is
        .set    ACPI_CNTL, 0x8000f844   # and whether
        .set    PM1_STS, 0x600          # there: what happened, what may tell of it, and what is to be done
        .set    PM1_EN, 0x602
        .set    PM1_CNT, 0x604
        .set    BUTTON, 0x100
        .set    OFF, 0x2000

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

        cmpl    $0, %cs:button
        je      8f
        movl    $PMBASE, %eax
        movw    $0xcf8, %dx
        outl    %eax, %dx
        movl    $(PM1_STS + 1), %eax
        movw    $0xcfc, %dx
        outl    %eax, %dx
        movl    $ACPI_CNTL, %eax
        movw    $0xcf8, %dx
        outl    %eax, %dx
        movb    $0x80, %al
        movw    $0xcfc, %dx
        outb    %al, %dx
        movw    $BUTTON, %ax
        movw    $PM1_EN, %dx
        outw    %ax, %dx

8:      cmpl    $0, %cs:noise
        je      11f
        rdtsc                           # xorshift, begun with the time
        orl     $1, %eax
        movl    $FIRST_PAGE, %edi
        movl    %cs:wss, %ecx
        shll    $10, %ecx
9:      movl    %eax, %ebx
        shll    $13, %ebx
        xorl    %ebx, %eax
        movl    %eax, %ebx
        shrl    $17, %ebx
        xorl    %ebx, %eax
        movl    %eax, %ebx
        shll    $5, %ebx
        xorl    %ebx, %eax
        addr32 movl %eax, (%edi)
        testl   $0xfff, %edi
        jnz     10f
        addr32 movl $0, (%edi)          # a page begins with the round it was written in: none yet
10:     addl    $4, %edi
        decl    %ecx
        jnz     9b

11:     movb    $0x34, %al              # timer 0, periodic
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
        cmpl    $0, %cs:button
        je      1f
        movw    $PM1_STS, %dx
        inw     %dx, %ax
        testw   $BUTTON, %ax
        jz      1f
        movw    $OFF, %ax
        movw    $PM1_CNT, %dx
        outw    %ax, %dx
1:      incl    SEQ
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
button: .long   0                       # 1: it knows the power button
noise:  .long   0                       # 1: its pages are random

        .org    0xfff0
        ljmp    $0xf000, $_start
        .org    0x10000
