# Integers, a dictionary, strings and calls: repeats a piece of work for some seconds, and prints
# what benches/cpu/main.rs prints.
import sys
import time


def step(table, number):
    number = (number * 1103515245 + 12345) & 0x7FFFFFFF
    key = number % 1009
    table[key] = table.get(key, 0) + number
    return number


def piece():
    table = {}
    number = 1
    text = 0
    for turn in range(40000):
        number = step(table, number)
        if turn % 16 == 0:
            text += len("%d:%x" % (turn, number))
    result = text
    for key in sorted(table):
        result = (result * 31 + table[key] + key) & 0xFFFFFFFFFFFFFFFF
    return result


seconds = float(sys.argv[1])
start = time.monotonic()
first = piece()
begin = time.monotonic()
pieces = 0
while True:
    assert piece() == first
    pieces += 1
    taken = time.monotonic() - begin
    if taken >= seconds:
        break
everything = time.monotonic() - start
print("%016x %.9f %d 40000 %.3f" % (first, taken / pieces, pieces, everything))
