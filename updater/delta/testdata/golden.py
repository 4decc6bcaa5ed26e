#!/usr/bin/env python3
"""Makes golden.old, golden.new and golden.delta from FORMAT.md alone, with Python and the zstd program: nothing of ours."""
import hashlib, os, struct, subprocess

os.chdir(os.path.dirname(os.path.abspath(__file__)))
LEAF = 65536
old = b"".join(hashlib.sha256(b"%d" % i).digest() for i in range(3 * LEAF // 32))

def uvarint(n):
    out = b""
    while n >= 128:
        out += bytes([n & 127 | 128])
        n >>= 7
    return out + bytes([n])

def zigzag(n):
    return uvarint(n << 1 if n >= 0 else (-n << 1) - 1)

def packed(b):
    z = subprocess.run(["zstd", "-19", "--no-check", "--stream-size=%d" % len(b), "-c"], input=b, stdout=subprocess.PIPE, check=True).stdout
    return uvarint(len(b)) + uvarint(len(z)) + z

def stored(b):
    return uvarint(len(b)) + (uvarint(0) + b if b else b"")

def op(kind, length, step=None):
    return uvarint(length << 3 | kind) + (b"" if step is None else zigzag(step))

text = b"The bootloader's own storage is the truth. " * 100
change = bytes([0, 0, 7, 255]) * 250

def changed(at):
    return bytes((a + b) & 255 for a, b in zip(old[at:at + 1000], change))

# Frame 0, two leaves: copies forward and back, all kinds of operation.
new, control = b"", b""
new += old[0:5000];                control += op(2, 5000)                    # where it was
new += text;                       control += op(0, len(text))
new += old[150000:160000];         control += op(1, 10000, 150000 - 9300)    # moved here from behind
new += changed(160000);            control += op(4, 1000)
new += bytes(4000);                control += op(5, 4000)
new += changed(1);                 control += op(3, 1000, 1 - 24300 - 140700)  # and from before
rest = 2 * LEAF - len(new)
new += old[1001:1001 + rest];      control += op(2, rest)
frame0 = b"\1" + packed(control) + packed(change * 2) + packed(text)

# Frame 1: the tail of the image, nothing compressed, no differences.
new += b"end"
frame1 = b"\1" + stored(op(0, 3)) + stored(b"") + stored(b"end")

frames = [(2 * LEAF, frame0), (3, frame1)]
table = b"".join(struct.pack("<II", n, len(b)) for n, b in frames)
biggest = max(len(b) for _, b in frames)
body = len(control) + 2 * len(change) + len(text)
head = struct.pack("<8sHHIQQ32sQIIIIQ", b"TNDMDLTA", 1, 1, 0, len(new), len(old), hashlib.sha256(old).digest(),
                   16 * 3 + 2 * LEAF + biggest + body + (1 << 20), 2, 2 * LEAF, biggest, body, 0)
head += hashlib.sha256(head + table).digest()
for name, b in [("golden.old", old), ("golden.new", new), ("golden.delta", head + table + b"".join(b for _, b in frames))]:
    open(name, "wb").write(b)
