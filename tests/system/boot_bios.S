# What BIOS starts: from the first sector of a disk, from a CD-ROM, or as iPXE's network bootstrap program, all at 0x7c00.
# It says its word on the serial line at every tick of BIOS' clock. The word, with a zero, is appended by the builder.

        .set    LINE_STATUS, 0x3fd
        .set    LINE, 0x3f8
        .set    BIOS_TICKS, 0x46c

        .code16
        .globl  _start
_start: ljmp    $0, $main               # a CD-ROM's begins at 0x07c0:0
main:   xorw    %ax, %ax
        movw    %ax, %ds
        movw    %ax, %ss
        movw    $0x7c00, %sp
        cld
say:    movw    $word, %si
1:      lodsb
        testb   %al, %al
        jz      3f
        movb    %al, %bl
2:      movw    $LINE_STATUS, %dx
        inb     %dx, %al
        testb   $0x20, %al
        jz      2b
        movb    %bl, %al
        movw    $LINE, %dx
        outb    %al, %dx
        jmp     1b
3:      movw    BIOS_TICKS, %ax
4:      sti
        hlt
        cmpw    BIOS_TICKS, %ax
        je      4b
        jmp     say
word:
