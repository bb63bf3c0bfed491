// Whole layers run by several threads give the bits that one thread gives. Built by sanitize_kernels.py with the thread
// sanitizer, over the kernels' own sources and a pool of plain threads: XLA's is not instrumented, so that in a process
// with JAX every hand-over through it would look like a race.
#include <cstdio>
#include <cstring>
#include <functional>
#include <random>
#include <thread>

#include "layers.h"

using namespace mbjax;

namespace {

struct Pool {  // a thread for everything scheduled
  std::vector<std::thread> threads;
  template <class Fn>
  void Schedule(Fn fn) { threads.emplace_back(fn); }
  ~Pool() { for (std::thread& t : threads) t.join(); }
};

struct Case {
  const char* name;
  int bits;
  bool mins;
  KvType type;
  int64_t lanes, tokens, width, heads, kv_heads, head_dim, ffn, packs, threads;
};

class Model {
 public:
  explicit Model(const Case& c) : c_(c), random_(7) {
    const int64_t D = c.width, F = c.ffn, q = c.heads * c.head_dim, kv = c.kv_heads * c.head_dim;
    const int64_t in[kMaps] = {D, D, D, q, D, D, F}, out[kMaps] = {q, kv, kv, D, F, F, D};
    norm_ = floats(D), cos_ = floats(c.lanes * c.tokens * c.head_dim / 2), sin_ = floats(cos_.size());
    h_ = floats(c.lanes * c.tokens * D), gates_.assign(c.lanes * c.tokens * c.packs, 0.5f);
    if (!gates_.empty()) gates_[0] = 0;
    for (int64_t i = 0; i < c.lanes; ++i) lengths_.push_back(static_cast<int32_t>(130 * i + 3)), seats_.push_back(static_cast<int32_t>(c.lanes - 1 - i));
    for (Layer& layer : layers_) {
      layer = Layer{};
      layer.attn_norm = layer.mlp_norm = norm_.data();
      for (int m = 0; m < kMaps; ++m) {
        layer.maps[m] = weight(in[m], out[m]);
        for (int64_t p = 0; p < c.packs; ++p) layer.deltas[m][p] = {keep(floats(5 * in[m])), keep(floats(5 * out[m])), 5, 0.5f};
      }
    }
  }

  // The final h and the whole cache, as bytes.
  std::vector<char> run(int64_t threads) {
    const int64_t item = c_.type == KvType::kF32 ? 4 : c_.type == KvType::kBf16 ? 2 : 1;
    const int64_t heads = c_.lanes * c_.kv_heads * kPositions, bytes = heads * c_.head_dim * item;
    std::vector<std::vector<char>> cache(2 * kLayers, std::vector<char>(bytes, 0));
    std::vector<std::vector<float>> scales(2 * kLayers, std::vector<float>(heads, 0));
    std::vector<float> h = h_;
    for (int64_t i = 0; i < kLayers; ++i) {
      Layer& l = layers_[i];
      l.k_cache = cache[2 * i].data(), l.v_cache = cache[2 * i + 1].data();
      if (c_.type == KvType::kInt8) l.k_scales = scales[2 * i].data(), l.v_scales = scales[2 * i + 1].data();
    }
    Rows rows{h.data(), lengths_.data(), seats_.data(), cos_.data(), sin_.data(), gates_.data(), c_.lanes, c_.lanes,
              c_.tokens, c_.width, c_.heads, c_.kv_heads, c_.head_dim, kPositions, c_.ffn, c_.packs, 1e-5f, c_.type};
    std::vector<char> memory(size_t{1} << 25);
    Arena arena(memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64), memory.size() - 64);
    const int64_t widest = (std::max({c_.width, c_.ffn, c_.heads * c_.head_dim}) + kBlock - 1) / kBlock * kBlock;
    const LayerScratch work = take_layer_scratch(arena, rows, widest, c_.bits == 32 || c_.packs > 0, 5);
    if (arena.too_small()) std::fprintf(stderr, "scratch is too small\n"), std::abort();
    {
      Pool pool;
      run_team(pool, threads - 1, kLayers * kStagesPerLayer, [&](Team& team) {
        for (int64_t i = 0; i < kLayers; ++i) {
          const Layer* next = i + 1 < kLayers ? &layers_[i + 1] : nullptr;
          run_layer(kernels(), team, i * kStagesPerLayer, layers_[i], next, rows, work);
        }
      });
    }
    std::vector<char> all(reinterpret_cast<char*>(h.data()), reinterpret_cast<char*>(h.data() + h.size()));
    for (const std::vector<char>& part : cache) all.insert(all.end(), part.begin(), part.end());
    return all;
  }

 private:
  static constexpr int64_t kLayers = 3, kPositions = 300;

  std::vector<float> floats(size_t n) {
    std::normal_distribution<float> normal(0, 0.3f);
    std::vector<float> out(n);
    for (float& x : out) x = normal(random_);
    return out;
  }
  template <class T>
  T* keep(std::vector<T> values) {
    kept_.emplace_back(values.size() * sizeof(T) + 64);
    char* start = kept_.back().data() + (64 - reinterpret_cast<uintptr_t>(kept_.back().data()) % 64);
    std::memcpy(start, values.data(), values.size() * sizeof(T));
    return reinterpret_cast<T*>(start);
  }
  Weight weight(int64_t in, int64_t out) {
    Weight w{};
    w.bits = c_.bits, w.out = out, w.width = c_.bits == 32 ? in : (in + kBlock - 1) / kBlock * kBlock;
    if (c_.bits == 32) return w.values = reinterpret_cast<uint8_t*>(keep(floats(in * out))), w;
    w.groups = w.width / kBlock;
    std::vector<uint8_t> values(w.tiles() * w.value_bytes());
    for (uint8_t& x : values) x = static_cast<uint8_t>(random_());
    w.values = keep(values);
    const std::vector<uint16_t> scales(w.tiles() * w.groups * kLanes, 0x1400);  // about 0.001 in float16
    w.scales = keep(scales), w.mins = c_.mins ? keep(scales) : nullptr;
    return w;
  }

  const Case c_;
  std::mt19937 random_;
  std::vector<std::vector<char>> kept_;
  std::vector<float> norm_, cos_, sin_, h_, gates_;
  std::vector<int32_t> lengths_, seats_;
  Layer layers_[kLayers];
};

}  // namespace

int main() {
  const Case cases[] = {
      {"one token, int8", 8, false, KvType::kBf16, 1, 1, 72, 3, 1, 32, 200, 0, 2},
      {"two lanes, int4, two packs", 4, true, KvType::kInt8, 2, 4, 72, 6, 2, 16, 100, 2, 3},
      {"float32, more threads than runs", 32, false, KvType::kF32, 1, 1, 48, 4, 2, 16, 80, 0, 6},
      {"many tokens, int4", 4, false, KvType::kF32, 1, 37, 96, 4, 2, 32, 130, 0, 4},
      {"many tokens, int8, a pack", 8, false, KvType::kBf16, 2, 21, 64, 2, 2, 64, 96, 1, 5},
  };
  int wrong = 0, runs = 0;
  for (const char* isa : {"avx512vnni", "avx2", "neon", "portable"}) {
    if (!select_kernels(isa)) continue;
    for (const Case& c : cases) {
      Model model(c);
      const std::vector<char> alone = model.run(1);
      for (int i = 0; i < 10; ++i, ++runs) {
        if (model.run(c.threads) == alone) continue;
        std::fprintf(stderr, "%s, %s: %d threads give other bits than one\n", isa, c.name, static_cast<int>(c.threads)), ++wrong;
      }
    }
  }
  std::printf("%d runs of whole layers by 2 to 6 threads, %d with other bits than one thread gives\n", runs, wrong);
  return wrong || !runs;
}
