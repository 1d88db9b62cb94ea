# Random bytes as a kernel: in protected mode without paging, or with LONG=1 in long mode.
#
# A life begins with a seed from the time stamp counter, which is said on the serial port as
# "S" and eight digits; all that follows is made from it, up to the timer's interrupts. Every
# exception and interrupt leads to the next case: 64 random bytes in a page that the random
# registers mostly point to. Lives end when the code has ruined what leads there: in a triple fault,
# in a loop or in HLT without interrupts. Each 1024 cases are said as a dot.

        .intel_syntax noprefix
        .ifndef LONG
        .set LONG, 0
        .endif

        .set COM1, 0x3f8
        .set ARENA, 0x200000
        .set SIZE, 0x2000
        .set STACK, 0x300000
        .set TABLES, 0x400000
        .set IDT, 0x500000
        # Variables at fixed places, which code of both sizes reaches without a relocation.
        .set STATE, 0x600000
        .set COUNT, 0x600004
        .set LEADS, 0x600008

        .text
        .code32
        .long 0x1badb002, 0, -0x1badb002

        .globl _start
_start: cli
        mov esp, STACK
        lgdt [gdt_pointer]
        jmp 0x08:1f
1:      mov eax, 0x10
        mov ds, eax
        mov es, eax
        mov ss, eax

        # The seed, never zero.
        rdtsc
        imul eax, eax, 0x9e3779b1
        or eax, 1
        mov ds:[STATE], eax
        # Bytes that begin long instructions.
        mov dword ptr ds:[LEADS], 0xf3660f0f
        mov dword ptr ds:[LEADS + 4], 0xf048c4c5
        mov ebp, eax
        mov edx, COM1
        mov al, 'S'
        out dx, al
        mov ecx, 8
2:      rol ebp, 4
        mov eax, ebp
        and eax, 15
        mov al, [hex + eax]
        out dx, al
        loop 2b
        mov al, 10
        out dx, al

        # The interrupt controllers at vectors 32 and 40, with the timer alone; the timer at 1 kHz
        # (8259A and 8254 data sheets).
        .macro outb port, value
        mov al, \value
        out \port, al
        .endm
        outb 0x20, 0x11
        outb 0xa0, 0x11
        outb 0x21, 32
        outb 0xa1, 40
        outb 0x21, 4
        outb 0xa1, 2
        outb 0x21, 1
        outb 0xa1, 1
        outb 0x21, 0xfe
        outb 0xa1, 0xff
        outb 0x43, 0x34
        outb 0x40, 0xa9
        outb 0x40, 0x04

        # SSE and, where there is XSAVE, all of AVX: CR4.OSFXSR, OSXMMEXCPT, OSXSAVE.
        mov eax, 1
        cpuid
        mov esi, ecx
        mov eax, cr4
        or eax, 0x600
        bt esi, 26
        jnc 3f
        or eax, 1 << 18
3:      mov cr4, eax
        bt esi, 26
        jnc 4f
        xor ecx, ecx
        xgetbv
        or eax, 3
        bt esi, 28
        jnc 5f
        or eax, 4
5:      xsetbv
4:

        # All gates lead to one place.
        mov edi, IDT
        mov ecx, 256
        mov eax, offset handler
6:      mov [edi], ax
        mov word ptr [edi + 2], LONG * 0x10 + 0x08
        mov word ptr [edi + 4], 0x8e00
        mov edx, eax
        shr edx, 16
        mov [edi + 6], dx
        .if LONG
        mov dword ptr [edi + 8], 0
        mov dword ptr [edi + 12], 0
        add edi, 16
        .else
        add edi, 8
        .endif
        loop 6b
        lidt [idt_pointer]

        .if LONG
        # The first GiB as it is, by 2 MiB.
        mov edi, TABLES
        mov ecx, 0x1800
        xor eax, eax
        rep stosd
        mov dword ptr [TABLES], TABLES + 0x1007
        mov dword ptr [TABLES + 0x1000], TABLES + 0x2007
        mov edi, TABLES + 0x2000
        mov eax, 0x87
7:      mov [edi], eax
        add edi, 8
        add eax, 0x200000
        cmp eax, 0x40000000
        jb 7b
        mov eax, TABLES
        mov cr3, eax
        mov eax, cr4
        or eax, 0x20
        mov cr4, eax
        # EFER: SCE, LME, NXE.
        mov ecx, 0xc0000080
        rdmsr
        or eax, 0x901
        wrmsr
        mov eax, cr0
        or eax, 0x80000002
        mov cr0, eax
        jmp 0x18:handler
        .code64
        .else
        mov eax, cr0
        or eax, 2
        mov cr0, eax
        .endif

handler:
        mov esp, STACK
        cld
        # Ends an interrupt, if it was one.
        mov al, 0x20
        out 0x20, al
        inc dword ptr ds:[COUNT]
        test dword ptr ds:[COUNT], 1023
        jnz 1f
        mov edx, COM1
        mov al, '.'
        out dx, al
1:      # 64 bytes anywhere in the arena; now and then one that begins long instructions.
        call random
        mov ebp, eax
        and ebp, SIZE - 1
        cmp ebp, SIZE - 64
        jbe 2f
        sub ebp, 64
2:      add ebp, ARENA
        mov edi, ebp
        mov ecx, 64
3:      call random
        test eax, 0x7000
        jnz 4f
        mov edx, eax
        shr edx, 24
        and edx, 7
        mov al, ds:[LEADS + edx]
4:      mov [edi], al
        inc edi
        dec ecx
        jnz 3b

        # Flags: the arithmetic ones, direction, and mostly IF.
        call random
        and eax, 0xed5
        or eax, 0x200
        .if LONG
        push rax
        .else
        push eax
        .endif
        call pointer
        mov ebx, eax
        call pointer
        mov ecx, eax
        call pointer
        mov esi, eax
        call pointer
        mov edi, eax
        call random
        mov edx, eax
        .if LONG
        mov r8d, esi
        mov r9d, edi
        mov r10, 0x8000000000000000
        mov r11, -1
        mov r12d, ebx
        mov r13d, ARENA + SIZE / 2
        lea r14, [rdi + rcx]
        mov r15d, edx
        popfq
        mov esp, ARENA + SIZE / 2
        jmp rbp
        .else
        popfd
        mov esp, ARENA + SIZE / 2
        jmp ebp
        .endif

# A random number in eax (xorshift).
random:
        mov eax, ds:[STATE]
        mov edx, eax
        shl edx, 13
        xor eax, edx
        mov edx, eax
        shr edx, 17
        xor eax, edx
        mov edx, eax
        shl edx, 5
        xor eax, edx
        mov ds:[STATE], eax
        imul eax, eax, 0x9e3779b1
        ror eax, 11
        ret

# A random number in eax, which in three of four cases lies in the arena.
pointer:
        call random
        test eax, 0xc0000000
        jz 1f
        and eax, SIZE - 1
        add eax, ARENA
1:      ret

        .data
        .balign 8
gdt:    .quad 0
        .quad 0x00cf9a000000ffff
        .quad 0x00cf92000000ffff
        .quad 0x00af9a000000ffff
gdt_pointer:
        .word 31
        .long gdt
idt_pointer:
        .word 256 * (LONG * 8 + 8) - 1
        .long IDT
hex:    .ascii "0123456789abcdef"
