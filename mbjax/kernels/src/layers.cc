#include "layers.h"

namespace mbjax {
namespace {

// Rotates the queries and keys of one row and writes its keys and values to the cache.
void place_row(const Kernels& k, const Layer& layer, const Rows& rows, const LayerScratch& s, const Attention& a,
               int64_t row) {
  const int64_t E = rows.head_dim, half = E / 2, lane = row / rows.tokens;
  const int64_t position = a.start(lane) + row % rows.tokens;
  const float *cos = rows.cos + row * half, *sin = rows.sin + row * half;
  for (int64_t h = 0; h < rows.heads; ++h) {
    float* q = s.q + (row * rows.heads + h) * E;
    if (layer.q_norm) k.rms_norm(q, E, layer.q_norm, rows.eps, q);
    k.rope(q, cos, sin, half);
  }
  const int64_t size = rows.type == KvType::kF32 ? 4 : rows.type == KvType::kBf16 ? 2 : 1;
  for (int64_t h = 0; h < rows.kv_heads; ++h) {
    float* key = s.k + (row * rows.kv_heads + h) * E;
    const float* value = s.v + (row * rows.kv_heads + h) * E;
    if (layer.k_norm) k.rms_norm(key, E, layer.k_norm, rows.eps, key);
    k.rope(key, cos, sin, half);
    const int64_t at = (lane * rows.kv_heads + h) * rows.positions + position;
    k.store_kv(key, E, rows.type, layer.k_cache + at * E * size, layer.k_scales ? layer.k_scales + at : nullptr);
    k.store_kv(value, E, rows.type, layer.v_cache + at * E * size, layer.v_scales ? layer.v_scales + at : nullptr);
  }
}

Attention attention_of(const Layer& layer, const Rows& rows, const LayerScratch& s) {
  Attention a{};
  a.q = s.q, a.out = s.mixed, a.lengths = rows.lengths;
  a.k_cache = layer.k_cache, a.v_cache = layer.v_cache;
  a.k_scales = layer.k_scales, a.v_scales = layer.v_scales, a.type = rows.type;
  a.lanes = rows.lanes, a.tokens = rows.tokens, a.heads = rows.heads, a.kv_heads = rows.kv_heads;
  a.positions = rows.positions, a.head_dim = rows.head_dim;
  a.scale = 1.0f / __builtin_sqrtf(static_cast<float>(rows.head_dim));
  a.parts = s.parts;
  return a;
}

}  // namespace

LayerScratch take_layer_scratch(Arena& arena, const Rows& rows, int64_t act_width) {
  const int64_t R = rows.count(), E = rows.head_dim;
  LayerScratch s;
  s.act = take_activations(arena, R, act_width);
  s.q = arena.take<float>(R * rows.heads * E);
  s.k = arena.take<float>(R * rows.kv_heads * E);
  s.v = arena.take<float>(R * rows.kv_heads * E);
  s.mixed = arena.take<float>(R * rows.heads * E);
  s.gate = arena.take<float>(R * rows.ffn);
  s.up = arena.take<float>(R * rows.ffn);
  s.parts = arena.take<float>(
      attention_floats(rows.lanes, rows.tokens, rows.heads, rows.kv_heads, rows.positions, E));
  return s;
}

void run_layer(const Kernels& k, Team& team, int64_t at, const Layer& layer, const Rows& rows,
               const LayerScratch& s) {
  const int64_t R = rows.count(), D = rows.width, F = rows.ffn, E = rows.head_dim;
  const int64_t q_out = rows.heads * E, kv_out = rows.kv_heads * E;
  const Attention a = attention_of(layer, rows, s);

  quantize_stage(k, team, at, rows.h, D, layer.attn_norm, rows.eps, s.act, R);
  const Product qkv[3] = {{&layer.q, {s.q, q_out, layer.q_bias, nullptr}},
                          {&layer.k, {s.k, kv_out, layer.k_bias, nullptr}},
                          {&layer.v, {s.v, kv_out, layer.v_bias, nullptr}}};
  product_stage(k, team, at + 1, s.act, R, qkv, 3);
  team.stage(at + 2, R, [&](int64_t row) { place_row(k, layer, rows, s, a, row); });
  attend_stages(k, team, at + 3, a);

  quantize_stage(k, team, at + 5, s.mixed, q_out, nullptr, 0, s.act, R);
  const Product o = {&layer.o, {rows.h, D, nullptr, rows.h}};
  product_stage(k, team, at + 6, s.act, R, &o, 1);

  quantize_stage(k, team, at + 7, rows.h, D, layer.mlp_norm, rows.eps, s.act, R);
  const Product gate_up[2] = {{&layer.gate, {s.gate, F, nullptr, nullptr}}, {&layer.up, {s.up, F, nullptr, nullptr}}};
  product_stage(k, team, at + 8, s.act, R, gate_up, 2);
  team.stage(at + 9, R, [&](int64_t row) {
    k.silu_mul(s.gate + row * F, s.up + row * F, F);
    k.quantize_row(s.gate + row * F, F, nullptr, 0, s.act, row);
  });
  const Product down = {&layer.down, {rows.h, D, nullptr, rows.h}};
  product_stage(k, team, at + 10, s.act, R, &down, 1);
}

}  // namespace mbjax
