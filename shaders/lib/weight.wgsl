// A quantized matrix as every kernel sees it, whatever its type. A type's file in quant/ gives two functions:
//   columns(i, h)             where run h (0 or 1) of pair i of a row starts, in groups of four columns
//   weights(row, tail, i, h)  the 16 weights of that run, column j holding weights 4j to 4j + 3
// A pair is 32 weights in two runs of 16 columns that share bytes. `row` is where the row starts and `tail` where its
// second plane starts, both counted in vec4<u32>; see src/backend/gpu/layout.rs for the layouts.
@group(0) @binding(0) var<storage, read> weight_data: array<vec4<u32>>;
