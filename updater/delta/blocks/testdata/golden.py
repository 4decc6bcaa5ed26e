#!/usr/bin/python3
"""Makes golden.index and golden.new from FORMAT.md alone. Shares nothing with the Go code; packed units come from Debian's zstd."""
import hashlib, struct, subprocess

M = 2**64 - 1
BLOCK, FRAME, WINDOW, WIDTH, MOST, SEED = 512, 65536, 65536, 5, 8, 42

def uvarint(n):
    out = bytearray()
    while n >= 128:
        out.append(n & 127 | 128)
        n >>= 7
    return bytes(out + bytes([n]))

def splitmix(state):
    while True:
        state = state + 0x9e3779b97f4a7c15 & M
        z = state
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9 & M
        z = (z ^ z >> 27) * 0x94d049bb133111eb & M
        yield z ^ z >> 31

numbers = splitmix(SEED)
mul = next(numbers) & ~7 | 5
value = [next(numbers) for _ in range(256)]

def block_hash(b):
    h = 0
    for c in b.ljust(BLOCK, b'\0'):
        h = h * mul + value[c] & M
    return h

def zstd_block(b):
    """Content of the only block of a frame that zstd made, and None if it is no compressed one."""
    f = subprocess.run(['zstd', '-19', '-q', '-c', '--no-check'], input=b, stdout=subprocess.PIPE, check=True).stdout
    assert f[:4] == b'\x28\xb5\x2f\xfd'
    d = f[4]
    at = 5 + (0 if d & 32 else 1) + [1 if d & 32 else 0, 2, 4, 8][d >> 6]
    head = int.from_bytes(f[at:at + 3], 'little')
    assert head & 1, 'one block'
    return f[at + 3:at + 3 + (head >> 3)] if head >> 1 & 3 == 2 else None

text = b''.join(b'line %d of a file that is long enough, %d times over\n' % (i, i * i % 7) for i in range(40))
noise = hashlib.shake_256(b'tandem').digest(3 * BLOCK)
first = (text[:4 * BLOCK] + noise).ljust(FRAME, b'\0')
second = noise[BLOCK:] + text[4 * BLOCK // 2:][:2 * BLOCK] + b'the end, in a short block'
new = first + second

kinds = [(7, 0, None), (121, 1, None), (2, 2, 128 - 5), (3, 0, None)]
frames = [[(0, 4), (4, 3)], [(130, 3)]]
index = b''.join(uvarint(n << 2 | k) + (uvarint(d) if d else b'') for n, k, d in kinds)
parts = b''
for frame in frames:
    directory = units = b''
    for b, n in frame:
        plain = new[b * BLOCK:(b + n) * BLOCK]
        packed = zstd_block(plain) or plain
        if len(packed) >= len(plain):
            packed = plain
        index += uvarint(len(packed) * MOST + n - 1)
        directory += hashlib.sha256(packed).digest()[:16]
        units += packed
    index += hashlib.sha256(directory).digest()[:16]
    parts += directory + units
at = 0
for n, k, _ in kinds:
    for b in range(at, at + n):
        if k == 0:
            index += struct.pack('<Q', block_hash(new[b * BLOCK:(b + 1) * BLOCK]))[8 - WIDTH:]
    at += n

blocks, units = at, sum(map(len, frames))
f = next(f for f in range(12, 24) if 2**f >= 8 * blocks or f == 23)
scan = 2**f // 8 + 4 * 2**min(f - 3, 16) + 256 * 1024 + BLOCK
memory = 9 * blocks + 4 * units + 32 * len(frames) + max(scan, 2 * (WINDOW + FRAME) + FRAME) + 2**20
head = b'TNDMBLKS' + struct.pack('<HHIQQIIIBBHQIIQ24x', 1, 0, 0, len(new), memory, BLOCK, FRAME, WINDOW, WIDTH, 0, MOST, SEED,
                                 sum(n for n, k, _ in kinds if k == 0), units, len(index))
assert len(head) == 96
open('golden.index', 'wb').write(head + hashlib.sha256(head + index).digest() + index + parts)
open('golden.new', 'wb').write(new)
