# Results that no version of Python and no library may change.
import hashlib
from fractions import Fraction
from math import isqrt

digest = hashlib.sha256()


def note(*values):
    digest.update(repr(values).encode())


# Long integers.
power = pow(3, 9000)
note(power % (2**521 - 1), isqrt(power) % 10**18, str(power)[:50], len(str(power)))
note(pow(0xC0FFEE, 2**255 - 21, 2**255 - 19))
# Fractions and floating point.
note(sum((Fraction(1, n) for n in range(1, 300)), Fraction()))
x = 0.5
for n in range(200000):
    x = 3.7 * x * (1.0 - x)
note(x.hex())
# Containers, sorting, text.
state, seen = 1, {}
for n in range(100000):
    state = state * 6364136223846793005 + 1442695040888963407 & (1 << 64) - 1
    key = state >> 44
    seen[key] = seen.get(key, 0) + 1
note(len(seen), sorted(seen.items(), key=lambda item: (-item[1], item[0]))[:100])
text = " ".join(f"{n:x}" for n in range(20000))
note(text.count("ff"), text.upper().split()[777], text[::-1][:20], hash(2**61))


# Generators, exceptions, recursion.
def tree(depth):
    if depth:
        yield from tree(depth - 1)
        yield depth
        yield from tree(depth - 1)


note(sum(n * value for n, value in enumerate(tree(14))))
caught = 0
for n in range(20000):
    try:
        1 // (n % 3)
    except ZeroDivisionError:
        caught += 1
note(caught)
print(digest.hexdigest())
