// Whole decoder layers in one call: norm, q/k/v, rotary positions, cache, attention, output, norm, gated MLP.
#pragma once
#include "stages.h"

namespace mbjax {

enum Map { kQ, kK, kV, kO, kGate, kUp, kDown, kMaps };
constexpr int kMaxPacks = 8;

// A pack's delta on one map: b [out, rank], a [rank, in]; rank 0 where it has none.
struct LowRank {
  const float *a, *b;
  int64_t rank;
  float scale;
};

struct Layer {
  const float *attn_norm, *mlp_norm;
  Weight maps[kMaps];
  const float* biases[3];  // of q, k and v; null where the model has none
  const float *q_norm, *k_norm;
  char *k_cache, *v_cache;
  float *k_scales, *v_scales;
  LowRank deltas[kMaps][kMaxPacks];
};

struct Rows {
  float* h;  // [B, T, D], overwritten layer by layer
  const int32_t* lengths;
  const float *cos, *sin;  // [B, T, E / 2]
  const float* gates;      // [B, T, P]
  int64_t lanes, tokens, width, heads, kv_heads, head_dim, positions, ffn, packs;
  float eps;
  KvType type;
  int64_t count() const { return lanes * tokens; }
};

struct LayerScratch {
  Activations act;
  float *q, *k, *v, *mixed, *gate, *up, *parts, *low;
  int64_t rank;  // the largest, the width of a row in `low` [R, 3, P, rank]
};

constexpr int64_t kStagesPerLayer = 14;

// `wide`: whether a map is in float32 or has deltas; `rank`: the largest of those.
LayerScratch take_layer_scratch(Arena& arena, const Rows& rows, int64_t act_width, bool wide, int64_t rank);
// `next`: the layer that comes after it, or null.
void run_layer(const Kernels& k, Team& team, int64_t first_stage, const Layer& layer, const Layer* next,
               const Rows& rows, const LayerScratch& scratch);

}  // namespace mbjax
