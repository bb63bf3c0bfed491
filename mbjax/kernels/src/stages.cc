#include "stages.h"

namespace mbjax {
namespace {

// One task: the queries of one lane, KV head and split of the cache.
void few_part(const Kernels& k, const Attention& a, int64_t lane, int64_t kv_head, int64_t split) {
  const int64_t G = a.per_kv(), E = a.head_dim, start = a.start(lane);
  const KvHead keys = a.head(a.k_cache, a.k_scales, lane, kv_head);
  const KvHead values = a.head(a.v_cache, a.v_scales, lane, kv_head);
  for (int64_t t = 0; t < a.tokens; ++t) {
    const int64_t begin = split * kSplit, end = std::min(start + t + 1, begin + kSplit);
    if (end <= begin) continue;
    const int64_t row = lane * a.tokens + t;
    const float* q = a.q + (row * a.heads + kv_head * G) * E;
    float* part = a.parts + ((row * a.kv_heads + kv_head) * a.splits() + split) * G * (E + 2);
    k.attend_part(q, G, E, a.scale, keys, values, begin, end, part);
  }
}

void few_merge(const Kernels& k, const Attention& a, int64_t lane, int64_t t) {
  const int64_t G = a.per_kv(), E = a.head_dim, row = lane * a.tokens + t;
  const int64_t splits = (a.start(lane) + t + 1 + kSplit - 1) / kSplit;
  for (int64_t h = 0; h < a.heads; ++h) {
    const float* part = a.parts + ((row * a.kv_heads + h / G) * a.splits() * G + h % G) * (E + 2);
    k.attend_merge(part, splits, G * (E + 2), E, a.out + (row * a.heads + h) * E);
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

}  // namespace

void attend_stages(const Kernels& k, Team& team, int64_t at, const Attention& a) {
  if (a.tokens > kFewRows) {
    team.stage(at, attention_tasks(a), [&](int64_t task) { many_task(k, a, task); });
    return;
  }
  int64_t longest = 0;
  for (int64_t lane = 0; lane < a.lanes; ++lane) longest = std::max(longest, a.start(lane) + a.tokens);
  const int64_t splits = (longest + kSplit - 1) / kSplit;
  team.stage(at, a.lanes * a.kv_heads * splits, [&](int64_t task) {
    few_part(k, a, task / splits / a.kv_heads, task / splits % a.kv_heads, task % splits);
  });
  team.stage(at + 1, a.lanes * a.tokens, [&](int64_t row) { few_merge(k, a, row / a.tokens, row % a.tokens); });
}

}  // namespace mbjax
