// The handler of whole layers, as XLA calls it: mbjax/kernels/layers.py tells by numbers where the weights lie.
#include <vector>

#include "ffi_args.h"
#include "layers.h"

namespace mbjax {
namespace {

constexpr int64_t kMapInts = 5, kVectors = 7;  // of the layout in mbjax/kernels/bundle.py
constexpr int64_t kLayerInts = kMaps * kMapInts + kVectors, kLowInts = 4;

// The bytes that all weights of some layers lie in.
struct Bundle {
  const char* data;
  int64_t bytes;

  const char* at(Check& check, int64_t offset, int64_t size) const {
    check.that(offset >= 0 && size >= 0 && offset <= bytes - size && offset % 4 == 0,
               "the layout points outside the weights");
    return data + offset;
  }
  const float* vector(Check& check, int64_t offset, int64_t n) const {
    return offset < 0 ? nullptr : reinterpret_cast<const float*>(at(check, offset, 4 * n));
  }
  // A map from its five numbers: offset, bits, width, groups, and whether it has mins.
  Weight map(Check& check, const int64_t* l, int64_t in, int64_t out) const {
    Weight w{};
    w.bits = static_cast<int>(l[1]), w.width = l[2], w.groups = l[3], w.out = out;
    check.that(w.bits == 4 || w.bits == 8 || w.bits == 32, "weights have 4, 8 or 32 bits");
    check.that(w.width >= in && (w.bits < 32 || w.width == in), "weight is narrower than its input");
    if (!check.ok()) return w;
    if (w.bits == 32) {
      w.values = reinterpret_cast<const uint8_t*>(at(check, l[0], 4 * out * in));
      return w;
    }
    check.that(w.groups > 0 && w.width % (w.groups * kBlock) == 0, "weight groups must be multiples of 32 inputs");
    check.that(!l[4] || w.bits == 4, "8-bit weights have no mins");
    w.values = reinterpret_cast<const uint8_t*>(data + l[0]);
    w.scales = reinterpret_cast<const uint16_t*>(w.values + w.value_bytes());
    w.mins = l[4] ? w.scales + w.groups * kLanes : nullptr;
    w.stride = w.tile_bytes();
    at(check, l[0], w.tiles() * w.stride);
    return w;
  }
};

// Inputs and outputs of each map.
struct Widths {
  int64_t in[kMaps], out[kMaps];
};

Widths widths_of(const Rows& r) {
  const int64_t D = r.width, F = r.ffn, q_out = r.heads * r.head_dim, kv_out = r.kv_heads * r.head_dim;
  return {{D, D, D, q_out, D, D, F}, {q_out, kv_out, kv_out, D, F, F, D}};
}

Layer layer_of(Check& check, const Bundle& bundle, const int64_t* l, const Rows& r) {
  const Widths n = widths_of(r);
  Layer layer{};
  for (int m = 0; m < kMaps; ++m) layer.maps[m] = bundle.map(check, l + m * kMapInts, n.in[m], n.out[m]);
  const int64_t* v = l + kMaps * kMapInts;
  layer.attn_norm = bundle.vector(check, v[0], r.width), layer.mlp_norm = bundle.vector(check, v[1], r.width);
  check.that(layer.attn_norm && layer.mlp_norm, "a layer needs both norms");
  for (int m = 0; m < 3; ++m) layer.biases[m] = bundle.vector(check, v[2 + m], n.out[m]);
  layer.q_norm = bundle.vector(check, v[5], r.head_dim), layer.k_norm = bundle.vector(check, v[6], r.head_dim);
  return layer;
}

// Points layer `i` of the cache [L, 2, B, K, S, E] out to it.
void give_cache(Layer& layer, int64_t i, const Rows& r, char* kv, float* scales) {
  const int64_t heads = r.lanes * r.kv_heads * r.positions;
  const int64_t bytes = heads * r.head_dim * (r.type == KvType::kF32 ? 4 : r.type == KvType::kBf16 ? 2 : 1);
  layer.k_cache = kv + 2 * i * bytes, layer.v_cache = layer.k_cache + bytes;
  layer.k_scales = scales ? scales + 2 * i * heads : nullptr;
  layer.v_scales = scales ? layer.k_scales + heads : nullptr;
}

// The deltas of pack p: per map the places of a, b and scale in its slot, in floats, and the rank.
void give_deltas(Check& check, Layer& layer, int64_t p, const Bundle& slot, const int64_t* l, const Rows& r) {
  const Widths n = widths_of(r);
  for (int m = 0; m < kMaps; ++m, l += kLowInts) {
    const int64_t rank = l[3];
    if (rank == 0) continue;
    check.that(rank > 0 && l[0] >= 0 && l[1] >= 0 && l[2] >= 0, "a delta has a negative place or rank");
    if (!check.ok()) return;
    LowRank& d = layer.deltas[m][p];
    d.a = slot.vector(check, 4 * l[0], rank * n.in[m]), d.b = slot.vector(check, 4 * l[1], rank * n.out[m]);
    const float* scale = slot.vector(check, 4 * l[2], 1);
    if (!check.ok()) return;
    d.rank = rank, d.scale = *scale;
  }
}

using Ints = ffi::Span<const int64_t>;

Rows rows_of(Check& check, const Buffer& h, const Buffer& lengths, const Buffer& cos, const Buffer& sin,
             const Buffer& kv, const Buffer& kv_scales, const Buffer& gates, int64_t packs) {
  Rows r{};
  const ffi::DataType type = kv.element_type();
  check.that(is(h, ffi::F32, 3), "h must be float32 [B, T, D]");
  check.that(type == ffi::F32 || type == ffi::BF16 || type == ffi::S8, "cache must be float32, bfloat16 or int8");
  check.that(kv.dimensions().size() == 6 && dim(kv, 1) == 2, "cache must be [L, 2, B, K, S, E]");
  r.lanes = dim(h, 0), r.tokens = dim(h, 1), r.width = dim(h, 2), r.packs = packs;
  r.type = type == ffi::F32 ? KvType::kF32 : type == ffi::BF16 ? KvType::kBf16 : KvType::kInt8;
  r.kv_heads = dim(kv, 3), r.positions = dim(kv, 4), r.head_dim = dim(kv, 5);
  check.that(dim(kv, 2) == r.lanes && r.tokens <= r.positions && head_dim_known(r.head_dim),
             "lanes, tokens or head width do not fit the cache");
  check.that(kv_scales.element_type() == ffi::F32 && (r.type != KvType::kInt8 ||
                 kv_scales.element_count() * r.head_dim == kv.element_count()), "int8 cache needs its scales");
  check.that(is(lengths, ffi::S32, 1) && dim(lengths, 0) == r.lanes, "lengths must be int32 [B]");
  const int64_t angles = r.count() * r.head_dim / 2;
  check.that(is(cos, ffi::F32, 3) && is(sin, ffi::F32, 3) && static_cast<int64_t>(cos.element_count()) == angles &&
                 static_cast<int64_t>(sin.element_count()) == angles, "cos and sin must be float32 [B, T, E / 2]");
  check.that(packs <= kMaxPacks && gates.element_type() == ffi::F32 &&
                 static_cast<int64_t>(gates.element_count()) == r.count() * packs, "gates must be float32 [B, T, P]");
  r.lengths = static_cast<const int32_t*>(lengths.untyped_data());
  r.cos = static_cast<const float*>(cos.untyped_data()), r.sin = static_cast<const float*>(sin.untyped_data());
  r.gates = static_cast<const float*>(gates.untyped_data());
  return r;
}

// The layers that a call runs, and what of them sets the size of its scratch.
struct Model {
  std::vector<Layer> layers;
  int64_t width = kBlock, rank = 0;
  bool wide = false;

  void add(const Layer& layer, int64_t packs) {
    layers.push_back(layer);
    for (int m = 0; m < kMaps; ++m) {
      width = std::max(width, (layer.maps[m].width + kBlock - 1) / kBlock * kBlock);
      wide |= layer.maps[m].bits == 32;
      for (int64_t p = 0; p < packs; ++p) rank = std::max(rank, layer.deltas[m][p].rank);
    }
    wide |= rank > 0;
  }
};

ffi::Error layers(ffi::ThreadPool pool, Buffer h, Buffer lengths, Buffer cos, Buffer sin, Buffer weights, Buffer kv,
                  Buffer kv_scales, Buffer gates, ffi::RemainingArgs slots, Result out, Result scratch, Result new_kv,
                  Result new_scales, Ints layout, Ints low_layout, int64_t first, int64_t heads, int64_t ffn,
                  float eps) {
  Check check;
  const int64_t P = static_cast<int64_t>(slots.size()), L = static_cast<int64_t>(layout.size()) / kLayerInts;
  Rows rows = rows_of(check, h, lengths, cos, sin, kv, kv_scales, gates, P);
  rows.heads = heads, rows.ffn = ffn, rows.eps = eps;
  check.that(rows.kv_heads > 0 && heads > 0 && heads % rows.kv_heads == 0, "heads do not fit the cache");
  check.that(layout.size() % kLayerInts == 0 && first >= 0 && first + L <= dim(kv, 0), "layers do not fit the cache");
  check.that(P == 0 || static_cast<int64_t>(low_layout.size()) == L * kMaps * kLowInts, "no layout for the deltas");
  check.that(new_kv->untyped_data() == kv.untyped_data() && new_scales->untyped_data() == kv_scales.untyped_data() &&
                 out->size_bytes() == h.size_bytes(), "results must be the cache and of h's shape");
  if (!check.ok()) return check.error();
  const Bundle bundle = {static_cast<const char*>(weights.untyped_data()), static_cast<int64_t>(weights.size_bytes())};
  float* const scales = rows.type == KvType::kInt8 ? static_cast<float*>(kv_scales.untyped_data()) : nullptr;
  Model model;
  for (int64_t i = 0; i < L && check.ok(); ++i) {
    Layer layer = layer_of(check, bundle, layout.begin() + i * kLayerInts, rows);
    give_cache(layer, first + i, rows, static_cast<char*>(kv.untyped_data()), scales);
    for (int64_t p = 0; p < P; ++p) {
      const Buffer slot = *slots.get<Buffer>(static_cast<size_t>(p));
      const Bundle floats = {static_cast<const char*>(slot.untyped_data()), static_cast<int64_t>(slot.size_bytes())};
      give_deltas(check, layer, p, floats, low_layout.begin() + i * kMaps * kLowInts, rows);
    }
    model.add(layer, P);
  }
  if (!check.ok()) return check.error();
  Arena arena(scratch->untyped_data(), scratch->size_bytes());
  const LayerScratch work = take_layer_scratch(arena, rows, model.width, model.wide, model.rank);
  check.that(!arena.too_small(), "scratch is too small");
  if (!check.ok()) return check.error();
  rows.h = static_cast<float*>(out->untyped_data());
  std::copy_n(static_cast<const float*>(h.untyped_data()), rows.count() * rows.width, rows.h);
  if (rows.count() == 0) return ffi::Error::Success();
  const Kernels& k = kernels();
  auto program = [&](Team& team) {
    for (size_t i = 0; i < model.layers.size(); ++i) {
      const Layer* next = i + 1 < model.layers.size() ? &model.layers[i + 1] : nullptr;
      run_layer(k, team, i * kStagesPerLayer, model.layers[i], next, rows, work);
    }
  };
  run_team(pool, helpers(pool, true), model.layers.size() * kStagesPerLayer, program);
  return ffi::Error::Success();
}

}  // namespace
}  // namespace mbjax

#pragma GCC visibility push(default)

XLA_FFI_DEFINE_HANDLER_SYMBOL(mbjax_layers, mbjax::layers,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>().Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>().Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>().Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>().Arg<ffi::AnyBuffer>()
                                  .RemainingArgs()
                                  .Ret<ffi::AnyBuffer>().Ret<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>().Ret<ffi::AnyBuffer>()
                                  .Attr<mbjax::Ints>("layout").Attr<mbjax::Ints>("low_layout")
                                  .Attr<int64_t>("first").Attr<int64_t>("heads").Attr<int64_t>("ffn")
                                  .Attr<float>("eps"));

#pragma GCC visibility pop
