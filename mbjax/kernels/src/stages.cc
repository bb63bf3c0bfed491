#include "stages.h"

namespace mbjax {
namespace {

// Rotates the keys of one new position and one KV head, and writes keys and values to the cache.
void place_kv(const Kernels& k, const Attention& a, int64_t row, int64_t kv_head) {
  const Place& p = *a.place;
  const int64_t E = a.head_dim, half = E / 2, lane = row / a.tokens;
  const int64_t position = a.start(lane) + row % a.tokens;
  float* key = p.k + (row * a.kv_heads + kv_head) * E;
  const float* value = p.v + (row * a.kv_heads + kv_head) * E;
  if (p.k_norm) k.rms_norm(key, E, p.k_norm, p.eps, key);
  k.rope(key, p.cos + row * half, p.sin + row * half, half);
  const int64_t at = (lane * a.kv_heads + kv_head) * a.positions + position;
  k.store_kv(key, E, a.type, a.k_cache + at * E * a.item(), a.k_scales ? a.k_scales + at : nullptr);
  k.store_kv(value, E, a.type, a.v_cache + at * E * a.item(), a.v_scales ? a.v_scales + at : nullptr);
}

void place_query(const Kernels& k, const Attention& a, int64_t row, float* q) {
  const Place& p = *a.place;
  const int64_t half = a.head_dim / 2;
  if (p.q_norm) k.rms_norm(q, a.head_dim, p.q_norm, p.eps, q);
  k.rope(q, p.cos + row * half, p.sin + row * half, half);
}

// One task: the queries of one lane, KV head and split of the cache. The split in which a new position falls writes it;
// no other reads it.
void few_part(const Kernels& k, const Attention& a, int64_t lane, int64_t kv_head, int64_t split) {
  const int64_t G = a.per_kv(), E = a.head_dim, start = a.start(lane);
  const KvHead keys = a.head(a.k_cache, a.k_scales, lane, kv_head);
  const KvHead values = a.head(a.v_cache, a.v_scales, lane, kv_head);
  thread_local std::vector<float> rotated;
  rotated.resize(static_cast<size_t>(G * E));
  for (int64_t t = 0; t < a.tokens; ++t) {
    const int64_t begin = split * kSplit, end = std::min(start + t + 1, begin + kSplit);
    if (end <= begin) continue;
    const int64_t row = lane * a.tokens + t;
    const float* q = a.q + (row * a.heads + kv_head * G) * E;
    if (a.place) {
      if (end == start + t + 1) place_kv(k, a, row, kv_head);
      std::copy_n(q, G * E, rotated.data());
      for (int64_t g = 0; g < G; ++g) place_query(k, a, row, rotated.data() + g * E);
      q = rotated.data();
    }
    float* part = a.parts + ((row * a.kv_heads + kv_head) * a.splits() + split) * G * (E + 2);
    k.attend_part(q, G, E, a.scale, keys, values, begin, end, part);
  }
}

void many_task(const Kernels& k, const Attention& a, int64_t task) {
  const int64_t blocks = (a.tokens + kQueryTokens - 1) / kQueryTokens, G = a.per_kv(), E = a.head_dim;
  const int64_t block = blocks - 1 - task % blocks;  // the longest first
  const int64_t kv_head = task / blocks % a.kv_heads, lane = task / blocks / a.kv_heads;
  const int64_t first = block * kQueryTokens, last = std::min(a.tokens, first + kQueryTokens);
  std::vector<const float*> q;
  std::vector<float*> out;
  std::vector<int64_t> limit;
  for (int64_t t = first; t < last; ++t) {
    for (int64_t g = 0; g < G; ++g) {
      const int64_t at = ((lane * a.tokens + t) * a.heads + kv_head * G + g) * E;
      q.push_back(a.q + at), out.push_back(a.out + at), limit.push_back(a.start(lane) + t + 1);
    }
  }
  float* work = a.parts + task * attend_block_floats(kQueryTokens * G, E);
  k.attend_block(q.data(), out.data(), limit.data(), (last - first) * G, E, a.scale,
                 a.head(a.k_cache, a.k_scales, lane, kv_head), a.head(a.v_cache, a.v_scales, lane, kv_head), work);
}

void place_all(const Kernels& k, const Attention& a, int64_t row) {
  for (int64_t h = 0; h < a.heads; ++h) place_query(k, a, row, a.q + (row * a.heads + h) * a.head_dim);
  for (int64_t h = 0; h < a.kv_heads; ++h) place_kv(k, a, row, h);
}

}  // namespace

void merge_row(const Kernels& k, const Attention& a, int64_t row, float* out) {
  const int64_t G = a.per_kv(), E = a.head_dim, lane = row / a.tokens;
  const int64_t splits = (a.start(lane) + row % a.tokens + 1 + kSplit - 1) / kSplit;
  for (int64_t h = 0; h < a.heads; ++h) {
    const float* part = a.parts + ((row * a.kv_heads + h / G) * a.splits() * G + h % G) * (E + 2);
    k.attend_merge(part, splits, G * (E + 2), E, out + h * E);
  }
}

void attend_stages(const Kernels& k, Team& team, int64_t at, const Attention& a) {
  if (a.tokens > kFewRows) {
    if (a.place) team.stage(at, a.lanes * a.tokens, [&](int64_t row, bool) { place_all(k, a, row); });
    team.stage(at + 1, attention_tasks(a), [&](int64_t task, bool) { many_task(k, a, task); });
    return;
  }
  int64_t longest = 0;
  for (int64_t lane = 0; lane < a.lanes; ++lane) longest = std::max(longest, a.start(lane) + a.tokens);
  const int64_t splits = (longest + kSplit - 1) / kSplit;
  team.stage(at + 1, a.lanes * a.kv_heads * splits, [&](int64_t task, bool) {
    few_part(k, a, task / splits / a.kv_heads, task / splits % a.kv_heads, task % splits);
  });
}

}  // namespace mbjax
