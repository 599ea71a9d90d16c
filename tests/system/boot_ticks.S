# A boot sector that ticks: it goes on counting from what its disk's second sector says, writes each count there and says
# it on the serial line, as "T <count> <lag>" in hex. One that starts only once first wipes the sector it came from. One
# with a twin does not rest, writes each count to the first disk and then to the second, and says one in 64; lag is by
# how much the second was behind the first when it started.

        .set    COM1, 0x3f8
        .set    COUNT, 0x8000           # what the second sector holds
        .set    NOTHING, 0x8200         # a sector of zeros
        .set    TWIN, 0x8400            # what the second disk's second sector held
        .set    LAG, 0x8600
        .set    SECOND, 0x81            # BIOS' number of the second disk

        .code16
        .globl  _start
_start: cli
        xorw    %ax, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %ss
        movw    $0x7c00, %sp
        sti
        cld
        movw    $NOTHING, %di
        movw    $256, %cx
        rep stosw
        movw    $0x4200, %ax            # read (AH 42h)
        movw    $counted, %si
        int     $0x13
        movl    $0, LAG
        cmpb    $0, twin
        je      1f
        pushw   %dx
        movw    $0x4200, %ax
        movw    $followed, %si
        movb    $SECOND, %dl
        int     $0x13
        popw    %dx
        movl    COUNT, %eax
        subl    TWIN, %eax
        movl    %eax, LAG
1:      cmpb    $0, once
        je      tick
        movw    $0x4300, %ax            # write (AH 43h); DL is still the drive
        movw    $wiped, %si
        int     $0x13
tick:   incl    COUNT
        movw    $0x4300, %ax
        movw    $counted, %si
        int     $0x13
        cmpb    $0, twin
        je      4f
        pushw   %dx
        movw    $0x4300, %ax
        movw    $counted, %si
        movb    $SECOND, %dl
        int     $0x13
        popw    %dx
        testb   $63, COUNT
        jnz     tick
4:      movb    $'T', %al
        call    say
        movb    $' ', %al
        call    say
        movl    COUNT, %ebx
        call    hex
        movb    $' ', %al
        call    say
        movl    LAG, %ebx
        call    hex
        movb    $13, %al
        call    say
        movb    $10, %al
        call    say
        cmpb    $0, twin
        jne     tick
        hlt                             # until the timer's next interrupt
        jmp     tick

hex:    movw    $8, %cx
1:      roll    $4, %ebx
        movb    %bl, %al
        andb    $15, %al
        addb    $'0', %al
        cmpb    $'9', %al
        jbe     2f
        addb    $39, %al                # 'a' follows '9'
2:      call    say
        loop    1b
        ret

say:    pushw   %dx
        pushw   %ax
        movw    $(COM1 + 5), %dx
3:      inb     %dx, %al
        testb   $0x20, %al
        jz      3b
        popw    %ax
        movw    $COM1, %dx
        outb    %al, %dx
        popw    %dx
        ret

counted: .byte  16, 0, 1, 0             # one sector
        .word   COUNT, 0
        .quad   1
followed: .byte 16, 0, 1, 0
        .word   TWIN, 0
        .quad   1
wiped:  .byte   16, 0, 1, 0
        .word   NOTHING, 0
        .quad   0
        .set    once, .                 # both are appended by the builder
        .set    twin, . + 1
