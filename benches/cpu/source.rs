//! A C program for a compiler to work on.

use std::fmt::Write as _;

use crate::Random;

/// A program of about so many lines that prints a number.
pub fn program(lines: usize) -> String {
    let mut random = Random::new(12);
    let mut text = String::from(
        "#include <stdio.h>\n#include <string.h>\n#include <stdlib.h>\n\n\
         struct item { unsigned key; double weight; char name[24]; struct item *next; };\n\n",
    );
    // Each function has 20 lines.
    let count = (lines / 20).max(1);
    for number in 0..count {
        let [a, b, c] = [(); 3].map(|()| random.below(97) + 3);
        let size = random.below(24) + 8;
        let _ = write!(
            text,
            "static unsigned work{number}(unsigned seed, struct item *list)\n\
             {{\n\
             \tunsigned table[{size}];\n\
             \tdouble sum = {a}.5;\n\
             \tfor (int i = 0; i < {size}; i++)\n\
             \t\ttable[i] = (seed >> (i & 15)) * {b}u + i * {c};\n\
             \tfor (struct item *p = list; p; p = p->next) {{\n\
             \t\tunsigned slot = (p->key + strlen(p->name)) % {size};\n\
             \t\tswitch (table[slot] % 5) {{\n\
             \t\tcase 0: table[slot] ^= p->key << 3; break;\n\
             \t\tcase 1: sum += p->weight * {a}; break;\n\
             \t\tcase 2: seed = seed * 1664525u + table[(slot + 1) % {size}]; break;\n\
             \t\tdefault: seed ^= (unsigned)(p->name[slot % 8] * {c}); break;\n\
             \t\t}}\n\
             \t}}\n\
             \tfor (int i = 0; i + 1 < {size}; i++)\n\
             \t\tif (table[i] > table[i + 1]) {{ unsigned t = table[i]; table[i] = table[i + 1]; table[i + 1] = t; }}\n\
             \treturn seed ^ table[{size} / 2] ^ (unsigned)(long long)sum;\n\
             }}\n\n"
        );
    }
    text.push_str(
        "int main(void)\n{\n\tstruct item *list = NULL;\n\tunsigned seed = 1;\n\
         \tfor (int i = 0; i < 100; i++) {\n\
         \t\tstruct item *p = malloc(sizeof *p);\n\
         \t\tp->key = i * 2654435761u;\n\t\tp->weight = i / 7.0;\n\
         \t\tmemset(p->name, 0, sizeof p->name);\n\
         \t\tsnprintf(p->name, sizeof p->name, \"item %d\", i * 37);\n\
         \t\tp->next = list;\n\t\tlist = p;\n\t}\n\
         \tfor (int i = 0; i < 1000; i++) {\n",
    );
    for number in 0..count {
        let _ = writeln!(text, "\t\tseed += work{number}(seed, list);");
    }
    text.push_str("\t}\n\tprintf(\"%08x\\n\", seed);\n\treturn 0;\n}\n");
    text
}
