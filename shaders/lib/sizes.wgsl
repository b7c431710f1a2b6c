// The sizes that shaders and the host share. This file stands in front of every kernel, and src/backend/gpu/mod.rs includes it:
// it is WGSL and Rust at once (which is why no literal has a suffix), so each number is written here and nowhere else.

// Threads of a workgroup in which each makes one value, or which sums a row together.
const THREADS: u32 = 64;

// Threads that take turns over the terms of one sum: a row of a matrix-vector product, a column of a context.
const LANES: u32 = 16;
// Such sums, of four rows each, in a workgroup of a matrix-vector product, and the rows that it makes.
const GROUPS: u32 = 4;
const MATVEC_ROWS: u32 = 4 * GROUPS;
// Threads over D / 4 in a workgroup of attn_context.
const COLUMNS: u32 = 16;

// Quads of a column of delta_rule's state that a thread holds at most; LANES threads share a column.
const STATE_QUADS: u32 = 4;

// Keys whose scores a workgroup of attention keeps; of more it makes them again.
const KEPT: u32 = 2048;

// Rows, and positions, of a tile of outputs; a workgroup makes one.
const TILE: u32 = 32;
// Threads along each side of a tile: one makes 4 × 4 outputs.
const SIDE: u32 = TILE / 4;
// vec4 from one row of a tile of operands to the next in workgroup memory: 32 columns, and one of padding, so that the threads of a
// column do not share a memory bank.
const PITCH: u32 = 32 / 4 + 1;

// Where subgroups are 8 wide (lib/lanes.wgsl): the lanes of one, the rows that it makes at a time, four a lane; how many there are
// in a workgroup of a matrix-vector product, and the rows that the workgroup makes.
const WIDTH: u32 = 8;
const SUBGROUP_ROWS: u32 = 4 * WIDTH;
const SUBGROUPS: u32 = 4;
const LANES_MATVEC_ROWS: u32 = SUBGROUP_ROWS * SUBGROUPS;

// vec4 in a row of a texture that holds weights or activations.
const TEXELS: u32 = 1024;
