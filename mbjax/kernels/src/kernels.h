// What every instruction set provides, and the plain structs that pass between the handlers and those kernels.
//
// Letters: K input width padded to whole groups, R rows. A tile is 16 output channels of a weight, stored together so
// that the 16 lanes of one vector are 16 outputs: no sums across lanes, and each row is accumulated in one fixed
// order, whatever the number of rows.
#pragma once
#include <cstddef>
#include <cstdint>

namespace mbjax {

constexpr int kLanes = 16;  // output channels of a tile
constexpr int kBlock = 32;  // inputs that share one activation scale
constexpr int kSplit = 128;  // cached positions per attention task; fixed, so results do not depend on threads
constexpr int kFewRows = 16;  // up to here attention runs query by query, above it in blocks of queries

// Activations of R rows as int8 with one scale per 32 inputs.
struct Activations {
  int8_t* values;   // [R, width]
  float* scales;    // [R, width / 32]
  int32_t* sums;    // [R, width / 32], of the int8 values
  float* weighted;  // [R, width / 32], scale times sum
  int64_t width;    // row stride, a multiple of 32
  float* wide;      // [R, width], the same rows before rounding; null where nobody needs them
};

// A weight [out, in]. Quantised ones lie in tiles. bits 8: values int8 [tiles, K/4, 16, 4]. bits 4: two to a byte, within a
// block of 32 inputs byte j holds inputs j (low) and j + 16 (high) [tiles, K/8, 16, 4]. scales and mins are float16
// [tiles, groups, 16]. With mins (4 bits only) w = scale * q + min; else w = scale * q (8 bits) or scale * (q - 8) (4 bits).
// bits 32: float32 as it is, [out, width].
struct Weight {
  const uint8_t* values;
  const uint16_t* scales;
  const uint16_t* mins;  // null where the weight is symmetric
  int bits;
  int64_t width;   // K
  int64_t groups;
  int64_t out;
  int64_t stride;  // bytes between tiles whose values, scales and mins lie together; 0: each in an array of its own

  int64_t tiles() const { return (out + kLanes - 1) / kLanes; }
  int64_t value_bytes() const { return kLanes * width * bits / 8; }
  int64_t tile_bytes() const { return value_bytes() + kLanes * groups * (mins ? 4 : 2); }
  const uint8_t* values_of(int64_t tile) const { return values + tile * (stride ? stride : value_bytes()); }
  const uint16_t* scales_of(int64_t tile) const { return scales + tile * (stride ? stride / 2 : groups * kLanes); }
  const uint16_t* mins_of(int64_t tile) const {
    return mins ? mins + tile * (stride ? stride / 2 : groups * kLanes) : nullptr;
  }
};

// What a low-rank delta adds to a product: gate * scale * b low, where the row's gate is above zero.
struct Delta {
  const float* b;      // [out, rank]
  const float* low;    // [R, low_stride], the product of a and the row
  const float* gates;  // [R, gate_stride]
  int64_t rank, low_stride, gate_stride;
  float scale;
};

// Where a product goes: out[r * stride + channel] = product + bias + deltas + residual, any of which may be missing.
struct Output {
  float* values;
  int64_t stride;
  const float* bias;
  const float* residual;  // same stride
  const Delta* deltas = nullptr;
  int n_deltas = 0;
};

enum class KvType { kF32, kBf16, kInt8 };

// Keys or values of one lane and one KV head: [S, E], and for int8 one float32 scale per position.
struct KvHead {
  const void* values;
  const float* scales;
  KvType type;
};

struct Kernels {
  const char* name;
  // Row r of x [R, n] to int8; inputs from n to act.width are zero. norm: null, or the weights of an RMS norm.
  void (*quantize_row)(const float* x, int64_t n, const float* norm, float eps, const Activations& act, int64_t row);
  void (*rms_norm)(const float* x, int64_t n, const float* weight, float eps, float* y);
  // Tiles [first, last); `ahead`: how many bytes further on lies what is read next, to be fetched meanwhile.
  void (*linear_tiles)(const Weight& w, const Activations& act, int64_t rows, int64_t first, int64_t last,
                       const Output& out, int64_t ahead);
  // y[r, o] = x_r . w_o over `in` inputs, for `outs` rows of w [outs, in].
  void (*dot_rows)(const float* x, int64_t x_stride, int64_t rows, const float* w, int64_t in, int64_t outs, float* y,
                   int64_t y_stride);
  void (*silu_mul)(float* gate, const float* up, int64_t n);
  void (*rope)(float* x, const float* cos, const float* sin, int64_t half);
  void (*store_kv)(const float* x, int64_t n, KvType type, void* row, float* scale);
  // Queries [queries, E] (stride E) against positions [begin, end): writes max, sum and weighted values per query.
  void (*attend_part)(const float* q, int64_t queries, int64_t head_dim, float scale, const KvHead& k, const KvHead& v,
                      int64_t begin, int64_t end, float* part);
  void (*attend_merge)(const float* parts, int64_t n_parts, int64_t part_stride, int64_t head_dim, float* out);
  // A block of queries, query i seeing positions [0, limit[i]); work holds attend_block_floats(queries, E) floats.
  void (*attend_block)(const float* const* q, float* const* out, const int64_t* limit, int64_t queries,
                       int64_t head_dim, float scale, const KvHead& k, const KvHead& v, float* work);
};

constexpr int64_t kAttendPositions = 64;  // cached positions that attend_block handles at once
constexpr int64_t attend_block_floats(int64_t queries, int64_t head_dim) {
  return kAttendPositions * (2 * head_dim + queries) + queries * (head_dim + 4);
}

const Kernels* portable_kernels();
const Kernels* avx2_kernels();    // null where this build or this machine has none
const Kernels* avx512_kernels();
const Kernels* neon_kernels();
const Kernels& kernels();         // the best of them, unless select_kernels chose
bool select_kernels(const char* name);

}  // namespace mbjax
