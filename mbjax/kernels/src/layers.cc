#include "layers.h"

namespace mbjax {
namespace {

Attention attention_of(const Layer& layer, const Rows& rows, const LayerScratch& s) {
  Attention a{};
  a.q = s.q, a.out = s.mixed, a.lengths = rows.lengths, a.seats = rows.seats, a.cached = rows.cached;
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

// Maps [first, first + count) read the same rows of `in` inputs.
struct Group {
  const Layer& layer;
  const Rows& rows;
  const LayerScratch& s;
  int first, count;
  int64_t in;

  const Weight& weight(int m) const { return layer.maps[first + m]; }
  const LowRank& low_rank(int m, int64_t p) const { return layer.deltas[first + m][p]; }
  float* low(int64_t row, int m, int64_t p) const { return s.low + ((row * 3 + m) * rows.packs + p) * s.rank; }
  // The scratch for rows no wider than this group needs.
  Activations act() const {
    Activations a = s.act;
    a.width = kBlock;
    for (int m = 0; m < count; ++m) a.width = std::max(a.width, (weight(m).width + kBlock - 1) / kBlock * kBlock);
    return a;
  }
  bool adapted() const {
    for (int m = 0; m < count; ++m) for (int64_t p = 0; p < rows.packs; ++p) if (low_rank(m, p).rank) return true;
    return false;
  }
  bool quantised() const {
    for (int m = 0; m < count; ++m) if (weight(m).bits < 32) return true;
    return false;
  }
  bool wide() const {
    for (int m = 0; m < count; ++m) if (weight(m).bits == 32) return true;
    return adapted();
  }
  bool gated(int64_t row, int64_t p) const { return rows.gates[row * rows.packs + p] > 0; }
};

// One row for the group's maps, normed if `norm` is given: rounded to int8 where they are quantised, and as it is
// where they or their deltas are not.
void take_row(const Kernels& k, const Group& g, const float* x, const float* norm, const Activations& to, int64_t row) {
  if (g.wide()) {
    float* wide = to.wide + row * to.width;
    if (norm) k.rms_norm(x, g.in, norm, g.rows.eps, wide);
    else std::copy_n(x, g.in, wide);
    x = wide, norm = nullptr;
  }
  if (g.quantised()) k.quantize_row(x, g.in, norm, g.rows.eps, to, row);
}

constexpr int64_t kRanks = 8, kLowRows = 8;  // of a chunk

// The products of the rows with the deltas' a. Nothing is done for rows that have a pack switched off.
template <class Taken>
void low_stage(const Kernels& k, Team& team, int64_t at, const Group& g, Taken& taken) {
  if (!g.adapted()) return;
  const int64_t R = g.rows.count(), P = g.rows.packs;
  const int64_t parts = (g.s.rank + kRanks - 1) / kRanks, blocks = (R + kLowRows - 1) / kLowRows;
  team.stage(at, g.count * P * parts * blocks, [&](int64_t chunk, bool) {
    const int64_t rank = chunk % parts * kRanks, row = chunk / parts % blocks * kLowRows;
    const int64_t p = chunk / parts / blocks % P, last = std::min(R, row + kLowRows);
    const int m = static_cast<int>(chunk / parts / blocks / P);
    const LowRank& d = g.low_rank(m, p);
    for (int64_t from = row, to; rank < d.rank && from < last; from = to) {
      const bool on = g.gated(from, p);
      for (to = from + 1; to < last && g.gated(to, p) == on; ++to) {}
      if (!on) continue;
      const Activations& act = taken();
      k.dot_rows(act.wide + from * act.width, act.width, to - from, d.a + rank * g.in, g.in,
                 std::min(d.rank - rank, kRanks), g.low(from, m, p) + rank, 3 * P * g.s.rank);
    }
  });
}

// Where map m of the group goes, its deltas in `deltas`.
Output output_of(const Group& g, int m, float* to, int64_t stride, const float* bias, const float* residual,
                 Delta* deltas) {
  Output out = {to, stride, bias, residual, deltas, 0};
  for (int64_t p = 0; p < g.rows.packs; ++p) {
    const LowRank& d = g.low_rank(m, p);
    if (d.rank) {
      deltas[out.n_deltas++] = {d.b, g.low(0, m, p), g.rows.gates + p, d.rank, 3 * g.rows.packs * g.s.rank,
                                g.rows.packs, d.scale};
    }
  }
  return out;
}

// The gated half of the MLP: a chunk makes the same channels of gate and up and joins them at once.
template <class Taken>
void gate_up_stage(const Kernels& k, Team& team, int64_t at, const Group& g, Taken& taken, const Reading& next) {
  const Weight &gate = g.weight(0), &up = g.weight(1);
  const LayerScratch& s = g.s;
  const int64_t rows = g.rows.count(), ffn = g.rows.ffn, step = tiles_per_chunk(gate, rows);
  Delta deltas[2][kMaxPacks];
  const Output to_gate = output_of(g, 0, s.gate, ffn, nullptr, nullptr, deltas[0]);
  const Output to_up = output_of(g, 1, s.up, ffn, nullptr, nullptr, deltas[1]);
  const Reading now = {{&gate}, 1};
  team.stage(at, chunks_of(gate, rows), [&](int64_t chunk, bool last_chunk) {
    const int64_t first = chunk * step, last = std::min(gate.tiles(), first + step);
    const int64_t ahead = distance(team, gate.values_of(first), now, next, rows, chunk, last_chunk);
    const int64_t up_ahead = last_chunk ? gate.values_of(last) + ahead - up.values_of(first) : ahead;
    k.linear_tiles(gate, taken(), rows, first, last, to_gate, ahead);
    k.linear_tiles(up, taken(), rows, first, last, to_up, up_ahead);
    const int64_t channel = first * kLanes, n = std::min(ffn, last * kLanes) - channel;
    for (int64_t row = 0; row < rows; ++row) k.silu_mul(s.gate + row * ffn + channel, s.up + row * ffn + channel, n);
  });
}

// Stages at to at + 2: rows made by row_of(row), with a norm or without, through one map that adds to h.
template <class RowOf>
void add_to_h(const Kernels& k, Team& team, int64_t at, const Group& g, const Reading& next, const RowOf& row_of) {
  const int64_t R = g.rows.count(), D = g.rows.width;
  Prepared taken(team, at, R, g.act(), [&](const Activations& to, int64_t row) {
    take_row(k, g, row_of(row), nullptr, to, row);
  });
  low_stage(k, team, at + 1, g, taken);
  Delta deltas[kMaxPacks];
  const Product product = {&g.weight(0), output_of(g, 0, g.rows.h, D, nullptr, g.rows.h, deltas)};
  product_stage(k, team, at + 2, taken, R, &product, 1, next);
}

}  // namespace

LayerScratch take_layer_scratch(Arena& arena, const Rows& rows, int64_t act_width, bool wide, int64_t rank) {
  const int64_t R = rows.count(), E = rows.head_dim;
  LayerScratch s;
  s.act = take_activations(arena, R, act_width, wide);
  s.q = arena.take<float>(R * rows.heads * E);
  s.k = arena.take<float>(R * rows.kv_heads * E);
  s.v = arena.take<float>(R * rows.kv_heads * E);
  s.mixed = arena.take<float>(R * rows.heads * E);
  s.gate = arena.take<float>(R * rows.ffn);
  s.up = arena.take<float>(R * rows.ffn);
  s.parts = arena.take<float>(
      attention_floats(rows.lanes, rows.tokens, rows.heads, rows.kv_heads, rows.positions, E));
  s.low = arena.take<float>(R * 3 * rows.packs * rank);
  s.rank = rank;
  return s;
}

void run_layer(const Kernels& k, Team& team, int64_t at, const Layer& layer, const Layer* next, const Rows& rows,
               const LayerScratch& s) {
  const int64_t R = rows.count(), D = rows.width, F = rows.ffn, E = rows.head_dim;
  const int64_t q_out = rows.heads * E, kv_out = rows.kv_heads * E;
  const Place place = {s.k, s.v, rows.cos, rows.sin, layer.q_norm, layer.k_norm, rows.eps};
  Attention a = attention_of(layer, rows, s);
  a.place = &place;

  const Group qkv = {layer, rows, s, kQ, 3, D};
  Delta deltas[3][kMaxPacks];
  Product products[3];
  float* const to[3] = {s.q, s.k, s.v};
  for (int m = 0; m < 3; ++m) {
    const int64_t out = m ? kv_out : q_out;
    products[m] = {&qkv.weight(m), output_of(qkv, m, to[m], out, layer.biases[m], nullptr, deltas[m])};
  }
  Prepared normed(team, at, R, qkv.act(), [&](const Activations& to, int64_t row) {
    take_row(k, qkv, rows.h + row * D, layer.attn_norm, to, row);
  });
  low_stage(k, team, at + 1, qkv, normed);
  product_stage(k, team, at + 2, normed, R, products, 3, {{&layer.maps[kO]}, 1});
  attend_stages(k, team, at + 3, a);

  add_to_h(k, team, at + 5, {layer, rows, s, kO, 1, q_out}, {{&layer.maps[kGate]}, 1}, [&](int64_t row) {
    return rows.tokens <= kFewRows ? merged(k, a, row) : s.mixed + row * q_out;
  });

  const Group gate_up = {layer, rows, s, kGate, 2, D};
  Prepared mixed(team, at + 8, R, gate_up.act(), [&](const Activations& to, int64_t row) {
    take_row(k, gate_up, rows.h + row * D, layer.mlp_norm, to, row);
  });
  low_stage(k, team, at + 9, gate_up, mixed);
  gate_up_stage(k, team, at + 10, gate_up, mixed, {{&layer.maps[kDown]}, 1});

  const Reading after = next ? Reading{{&next->maps[kQ], &next->maps[kK], &next->maps[kV]}, 3} : Reading{};
  add_to_h(k, team, at + 11, {layer, rows, s, kDown, 1, F}, after, [&](int64_t row) { return s.gate + row * F; });
}

}  // namespace mbjax
