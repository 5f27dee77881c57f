"""Tiles of the Triton kernels: the elements of a program, and their loads, stores and sums.

A program processes a tile of ROWS x COLUMNS elements; each operand has two strides. ROW_AXIS is the grid axis that
counts tiles down the rows. WIDE: offsets have 64 bits, else 32. PAIRS: the two inputs are interleaved in one tensor and
loaded together; 1: the first is in front, 2: the second.
"""

import triton
import triton.language as tl

from nonlin.kernels.triton.arithmetic import PTX, ptx


@triton.jit
def tile_rows(WIDE: tl.constexpr, ROW_AXIS: tl.constexpr, ROWS: tl.constexpr):
    at = tl.program_id(ROW_AXIS)
    if WIDE:
        at = at.to(tl.int64)
    return at * ROWS + tl.arange(0, ROWS)[:, None]


@triton.jit
def tile_columns(WIDE: tl.constexpr, ROW_AXIS: tl.constexpr, COLUMNS: tl.constexpr):
    at = tl.program_id(1 - ROW_AXIS)
    if WIDE:
        at = at.to(tl.int64)
    return at * COLUMNS + tl.arange(0, COLUMNS)[None, :]


@triton.jit
def wide(x, KIND: tl.constexpr):
    """Convert to the arithmetic type: float64 for float64, else float32."""
    if KIND == 2:
        return x.to(tl.float64)
    else:
        return x.to(tl.float32)


@triton.jit
def any_of(mask):
    """Whether any element of the tile is marked."""
    return tl.max(mask.to(tl.int32)) > 0


@triton.jit
def load(pointer, row, column, row_step, column_step, inside, KIND: tl.constexpr):
    return wide(tl.load(pointer + (row * row_step + column * column_step), mask=inside, other=0.0), KIND)


@triton.jit
def rounded(value, like: tl.constexpr, KIND: tl.constexpr):
    """Convert to the stored type.

    LLVM would round before it chooses between two values, number by number. After a choice two are rounded at once.
    The exact kind is left to LLVM: its large kernels would need more registers than there are.
    """
    if KIND == 0 and PTX:
        value = ptx("mov.b32 $0, $1;", value)
    return value.to(like)


@triton.jit
def store(pointer, row, column, row_step, column_step, inside, value, KIND: tl.constexpr):
    place = pointer + (row * row_step + column * column_step)
    tl.store(place, rounded(value, pointer.dtype.element_ty, KIND), mask=inside)


@triton.jit
def load_pair(pointer, row, rows, columns, row_step, KIND: tl.constexpr, WIDE: tl.constexpr, PAIRS: tl.constexpr,
              ROW_AXIS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Load the tile's two inputs from one contiguous range that begins at ``pointer``."""
    column = tile_columns(WIDE, ROW_AXIS, 2 * COLUMNS)
    inside = (row < rows) & (column < 2 * columns)
    both = tl.load(pointer + (row * row_step + column), mask=inside, other=0.0)
    even, odd = tl.split(tl.reshape(wide(both, KIND), (ROWS, COLUMNS, 2)))
    if PAIRS == 1:
        return even, odd
    else:
        return odd, even


@triton.jit
def store_pair(pointer, row, rows, columns, row_step, first, second, KIND: tl.constexpr, WIDE: tl.constexpr,
               PAIRS: tl.constexpr, ROW_AXIS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    column = tile_columns(WIDE, ROW_AXIS, 2 * COLUMNS)
    inside = (row < rows) & (column < 2 * columns)
    kind = pointer.dtype.element_ty
    if PAIRS == 1:
        both = tl.join(rounded(first, kind, KIND), rounded(second, kind, KIND))
    else:
        both = tl.join(rounded(second, kind, KIND), rounded(first, kind, KIND))
    tl.store(pointer + (row * row_step + column), tl.reshape(both, (ROWS, 2 * COLUMNS)), mask=inside)


@triton.jit
def add_up(sums, which, terms, inside, ROW_AXIS: tl.constexpr):
    """Store this program's part of a sum; parts are added in order later, so results are deterministic."""
    at = tl.program_id(ROW_AXIS) * tl.num_programs(1 - ROW_AXIS) + tl.program_id(1 - ROW_AXIS)
    programs = tl.num_programs(0) * tl.num_programs(1)
    tl.store(sums + (which * programs + at), tl.sum(tl.where(inside, terms, 0.0)))
