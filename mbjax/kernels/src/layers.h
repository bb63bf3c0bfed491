// Whole decoder layers in one call: norm, q/k/v, rotary positions, cache, attention, output, norm, gated MLP.
#pragma once
#include "stages.h"

namespace mbjax {

struct Layer {
  const float *attn_norm, *mlp_norm;
  Weight q, k, v, o, gate, up, down;
  const float *q_bias, *k_bias, *v_bias;  // null where the model has none
  const float *q_norm, *k_norm;
  char *k_cache, *v_cache;
  float *k_scales, *v_scales;
};

struct Rows {
  float* h;  // [B, T, D], overwritten layer by layer
  const int32_t* lengths;
  const float *cos, *sin;  // [B, T, E / 2]
  int64_t lanes, tokens, width, heads, kv_heads, head_dim, positions, ffn;
  float eps;
  KvType type;
  int64_t count() const { return lanes * tokens; }
};

struct LayerScratch {
  Activations act;
  float *q, *k, *v, *mixed, *gate, *up, *parts;
};

constexpr int64_t kStagesPerLayer = 10;

LayerScratch take_layer_scratch(Arena& arena, const Rows& rows, int64_t act_width);
void run_layer(const Kernels& k, Team& team, int64_t first_stage, const Layer& layer, const Rows& rows,
               const LayerScratch& scratch);

}  // namespace mbjax
