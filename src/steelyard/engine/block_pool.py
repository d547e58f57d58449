"""The key-value memory, cut into blocks of equal size: who holds which, and what each remembers.

A block that is full of known tokens is remembered by a digest of them and of everything before
them, so that the next prompt that begins alike need not be computed again. Numbers only: the
tensors behind the blocks are `paged_memory`'s.
"""

import hashlib
import struct
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

# Small, so that short beginnings are shared too: the system prompt of a template is 20 to 30 tokens.
BLOCK_TOKENS: Final = 8
# Forgetting many at once leaves long gaps, so that sequences lie in one piece.
_FORGET_SHARE: Final = 8


def chain_digest(before: bytes, token_ids: Sequence[int]) -> bytes:
    """What names a full block: its tokens, after everything that came before them."""
    packed = struct.pack(f"<{len(token_ids)}I", *token_ids)
    return hashlib.sha256(before + packed).digest()


class BlockPool:
    """Every block is held by one sequence or more, or remembered and free, or blank."""

    def __init__(self, blocks: int) -> None:
        assert blocks >= 1, blocks
        self.blocks = blocks
        self._holders = [0] * blocks
        self._is_blank = bytearray(b"\x01" * blocks)
        self._blank = blocks
        # Free blocks that still remember their tokens, least recently used first.
        self._remembered: OrderedDict[int, None] = OrderedDict()
        self._digests: dict[int, bytes] = {}
        self._by_digest: dict[bytes, int] = {}

    @property
    def free(self) -> int:
        """How many blocks can be taken, remembered ones among them."""
        return self._blank + len(self._remembered)

    @property
    def held(self) -> int:
        """How many blocks belong to sequences."""
        return self.blocks - self.free

    def take(self, count: int, *, after: int | None = None) -> list[int]:
        """That many blocks with nothing in them, side by side and behind `after` if possible."""
        assert count <= self.free, f"{count} blocks asked for, {self.free} are free"
        taken: list[int] = []
        for _ in range(count):
            if self._blank == 0:
                self._forget_oldest()
            after = self._place(after)
            self._is_blank[after] = 0
            self._blank -= 1
            assert self._holders[after] == 0, f"block {after} is held"
            self._holders[after] = 1
            taken.append(after)
        return taken

    def release(self, blocks: Sequence[int]) -> None:
        """Let go of blocks; what nobody else holds is free, and still remembered."""
        # The end of a text is less likely to come again than its beginning.
        for block in reversed(blocks):
            assert self._holders[block] > 0, f"block {block} is not held"
            self._holders[block] -= 1
            if self._holders[block] > 0:
                continue
            if block in self._digests:
                self._remembered[block] = None
            else:
                self._make_blank(block)

    def remember(self, block: int, digest: bytes) -> None:
        """Say what a held block is full of; the first block of a digest stays the one."""
        assert self._holders[block] > 0, f"block {block} is not held"
        if digest not in self._by_digest and block not in self._digests:
            self._by_digest[digest] = block
            self._digests[block] = digest

    def find(self, digest: bytes) -> int | None:
        """The block that remembers this digest."""
        return self._by_digest.get(digest)

    def is_free(self, block: int) -> bool:
        """Whether nobody holds the block."""
        return self._holders[block] == 0

    def share(self, block: int) -> None:
        """Hold a remembered block once more."""
        assert block in self._digests, f"block {block} remembers nothing"
        if self._holders[block] == 0:
            del self._remembered[block]
        self._holders[block] += 1

    def _place(self, after: int | None) -> int:
        if after is not None and after + 1 < self.blocks and self._is_blank[after + 1]:
            return after + 1
        gap = max(self._is_blank.split(b"\x00"), key=len)
        begin = self._is_blank.find(gap)
        # In the middle, so that whoever grows in front of the gap has room as well.
        return begin + len(gap) // 2 if begin > 0 else begin

    def _forget_oldest(self) -> None:
        for _ in range(min(len(self._remembered), max(1, self.blocks // _FORGET_SHARE))):
            block, _ = self._remembered.popitem(last=False)
            del self._by_digest[self._digests.pop(block)]
            self._make_blank(block)

    def _make_blank(self, block: int) -> None:
        self._is_blank[block] = 1
        self._blank += 1
