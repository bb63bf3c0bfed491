#include "layers.h"

namespace mbjax {
namespace {

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

const float* merged(const Kernels& k, const Attention& a, int64_t row) {
  thread_local std::vector<float> out;
  out.resize(static_cast<size_t>(a.heads * a.head_dim));
  merge_row(k, a, row, out.data());
  return out.data();
}

// The gated half of the MLP: a chunk makes the same channels of gate and up and joins them at once.
void gate_up_stage(const Kernels& k, Team& team, int64_t at, const Layer& layer, const Activations& act, int64_t rows,
                   int64_t ffn, const LayerScratch& s) {
  const int64_t step = tiles_per_chunk(layer.gate, rows);
  team.stage(at, chunks_of(layer.gate, rows), [&](int64_t chunk) {
    const int64_t first = chunk * step, last = std::min(layer.gate.tiles(), first + step);
    k.linear_tiles(layer.gate, act, rows, first, last, {s.gate, ffn, nullptr, nullptr});
    k.linear_tiles(layer.up, act, rows, first, last, {s.up, ffn, nullptr, nullptr});
    const int64_t channel = first * kLanes, n = std::min(ffn, last * kLanes) - channel;
    for (int64_t row = 0; row < rows; ++row) k.silu_mul(s.gate + row * ffn + channel, s.up + row * ffn + channel, n);
  });
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
  const Place place = {s.k, s.v, rows.cos, rows.sin, layer.q_norm, layer.k_norm, rows.eps};
  Attention a = attention_of(layer, rows, s);
  a.place = &place;

  Activations act = prepare(team, at, R, s.act, [&](const Activations& to, int64_t row) {
    k.quantize_row(rows.h + row * D, D, layer.attn_norm, rows.eps, to, row);
  });
  const Product qkv[3] = {{&layer.q, {s.q, q_out, layer.q_bias, nullptr}},
                          {&layer.k, {s.k, kv_out, layer.k_bias, nullptr}},
                          {&layer.v, {s.v, kv_out, layer.v_bias, nullptr}}};
  product_stage(k, team, at + 1, act, R, qkv, 3);
  attend_stages(k, team, at + 2, a);

  act = prepare(team, at + 4, R, s.act, [&](const Activations& to, int64_t row) {
    const float* mixed = rows.tokens <= kFewRows ? merged(k, a, row) : s.mixed + row * q_out;
    k.quantize_row(mixed, q_out, nullptr, 0, to, row);
  });
  const Product o = {&layer.o, {rows.h, D, nullptr, rows.h}};
  product_stage(k, team, at + 5, act, R, &o, 1);

  act = prepare(team, at + 6, R, s.act, [&](const Activations& to, int64_t row) {
    k.quantize_row(rows.h + row * D, D, layer.mlp_norm, rows.eps, to, row);
  });
  gate_up_stage(k, team, at + 7, layer, act, R, F, s);

  act = prepare(team, at + 8, R, s.act, [&](const Activations& to, int64_t row) {
    k.quantize_row(s.gate + row * F, F, nullptr, 0, to, row);
  });
  const Product down = {&layer.down, {rows.h, D, nullptr, rows.h}};
  product_stage(k, team, at + 9, act, R, &down, 1);
}

}  // namespace mbjax
