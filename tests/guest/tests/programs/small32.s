# A 32-bit program for Linux without a library: its system calls go by int 0x80, and its result is
# one line of text. 32-bit code has what 64-bit code has not: inc and dec of one byte, pusha, aam,
# daa, into, bound, segment prefixes that count.

        .intel_syntax noprefix
        .code32
        .globl _start
        .data
line:   .ascii "00000000 00000000 00000000\n"
length = . - line
pair:   .long 0, 1000

        .text
# Mixes eax into the sum in ebp.
mix:    xor ebp, eax
        imul ebp, ebp, 0x1000193
        ret

# Writes ebp as eight digits at edi.
digits: mov ecx, 8
1:      rol ebp, 4
        mov eax, ebp
        and al, 15
        cmp al, 10
        sbb al, 0x69
        das
        stosb
        loop 1b
        inc edi
        ret

_start: mov ebp, 0x811c9dc5
        xor ebx, ebx
1:      mov eax, ebx
        aam 7
        call mix
        mov eax, ebx
        add al, bh
        daa
        lahf
        and eax, 0x11ff
        call mix
        mov eax, ebx
        aad 13
        call mix
        bound ebx, [pair]
        inc ebx
        cmp ebx, 1000
        jne 1b
        mov edi, offset line
        push ebp
        call digits

        # pusha and popa, 16-bit operands and addresses on the stack, segment registers.
        pop ebp
        mov edx, 3000
1:      pusha
        mov eax, [esp + 4 * 5]
        sub eax, edx
        call mix
        mov [esp + 4 * 2], ebp
        popa
        push ds
        pop es
        mov ax, dx
        push edx
        cwd
        push dx
        pop cx
        pop edx
        movzx eax, cx
        call mix
        dec edx
        jnz 1b
        push edi
        push ebp
        call digits

        # x87 and wide arithmetic.
        pop ebp
        fldpi
        fld1
        mov ecx, 2000
1:      fadd st, st(1)
        fsqrt
        loop 1b
        sub esp, 8
        fstp qword ptr [esp]
        fstp st(0)
        pop eax
        call mix
        pop eax
        call mix
        mov eax, ebp
        mov edx, 0x1234
        mov ecx, 0xfedcba98
        div ecx
        call mix
        mov eax, edx
        call mix
        add esp, 4
        call digits

        mov eax, 4              # write(1, line, length)
        mov ebx, 1
        mov ecx, offset line
        mov edx, length
        int 0x80
        mov eax, 1              # exit(0)
        xor ebx, ebx
        int 0x80
