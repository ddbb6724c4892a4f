"""The input of a pointwise convolution at every place, from its weight gradient alone, and the order of the places.

The weight gradient of a 1x1 convolution is ``D^T A`` with one row for each of the ``N = B H W`` places of the batch, so
that its row space is the span of the inputs of all places while N is at most both numbers of channels. Behind a ReLU or
ReLU6 these are never negative and mostly zero, the more so the better the network is trained, and nearly no mixture of
them is: `unmixed` finds them. `lengths` gives each its length, `ends` what enters the block and what leaves it, and
`neighbours` which places lie side by side in one image. Of a weight delta `loose` finds those of every visit.
"""

from .barred import barred
from .block import Block, find_block
from .ends import BlockEnds, block_ends
from .lengths import Lengths, place_lengths
from .loose import MOST_LOOSE, LooseRows, find_loose_rows
from .neighbours import place_order
from .unmixed import MOST_PLACES, NoRows, Rows, find_rows

__all__ = [
    "MOST_LOOSE",
    "MOST_PLACES",
    "Block",
    "BlockEnds",
    "Lengths",
    "LooseRows",
    "NoRows",
    "Rows",
    "barred",
    "block_ends",
    "find_block",
    "find_loose_rows",
    "find_rows",
    "place_lengths",
    "place_order",
]
