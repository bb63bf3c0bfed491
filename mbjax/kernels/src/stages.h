// The stages that the handlers are put together from. Every function is called by all members of a team.
#pragma once
#include <algorithm>

#include "kernels.h"
#include "team.h"

namespace mbjax {

// Memory that XLA lent the handler, handed out in pieces of whole cache lines.
class Arena {
 public:
  Arena(void* memory, size_t bytes) : at_(static_cast<char*>(memory)), left_(bytes) {}
  template <class T>
  T* take(int64_t count) {
    const size_t bytes = (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64;
    if (bytes > left_) {
      short_ = true;
      return nullptr;
    }
    T* out = reinterpret_cast<T*>(at_);
    at_ += bytes, left_ -= bytes;
    return out;
  }
  bool too_small() const { return short_; }

 private:
  char* at_;
  size_t left_;
  bool short_ = false;
};

inline Activations take_activations(Arena& arena, int64_t rows, int64_t width, bool wide = false) {
  const int64_t blocks = rows * (width / kBlock);
  Activations act;
  act.values = arena.take<int8_t>(rows * width);
  act.scales = arena.take<float>(blocks);
  act.sums = arena.take<int32_t>(blocks);
  act.weighted = arena.take<float>(blocks);
  act.width = width;
  act.wide = wide ? arena.take<float>(rows * width) : nullptr;
  return act;
}

struct Product {
  const Weight* weight;
  Output out;
};

// Bytes of weights per claimed chunk: small enough that both threads end together, large enough to stream.
constexpr int64_t kChunkBytes = 12 * 1024;

inline int64_t tiles_per_chunk(const Weight& w, int64_t rows) {
  if (rows > kFewRows) return 1;
  return std::max<int64_t>(1, kChunkBytes / w.tile_bytes());
}

inline int64_t chunks_of(const Weight& w, int64_t rows) {
  const int64_t step = tiles_per_chunk(w, rows);
  return (w.tiles() + step - 1) / step;
}

// The weights that a stage of products reads, chunk after chunk.
struct Reading {
  const Weight* weights[3];
  int count;

  int64_t chunks(int64_t rows) const {
    int64_t n = 0;
    for (int i = 0; i < count; ++i) n += chunks_of(*weights[i], rows);
    return n;
  }
  const uint8_t* address(int64_t rows, int64_t chunk) const {
    for (int i = 0; i < count; ++i) {
      const int64_t mine = chunks_of(*weights[i], rows);
      if (chunk < mine) return weights[i]->values_of(chunk * tiles_per_chunk(*weights[i], rows));
      chunk -= mine;
    }
    return nullptr;
  }
};

// From `here`, a chunk, how far on lies what this member reads after it: in the same stage or, after its last chunk,
// in the next one. Memory is then never idle while members wait for each other.
inline int64_t distance(const Team& team, const uint8_t* here, const Reading& now, const Reading& next, int64_t rows,
                        int64_t chunk, bool last) {
  const uint8_t* there = last ? next.address(rows, team.first(next.chunks(rows))) : now.address(rows, chunk + 1);
  return there ? there - here : 0;
}

// Up to here every member quantises all rows for itself: that takes less time than waiting for one another.
constexpr int64_t kOwnRows = 4;

// The rows that the following stages read, made by fn(act, row). Many rows are shared and made in stage `at`. Of few
// each member makes its own when it asks for them, which it does holding a chunk that needs them: what fn reads may be
// overwritten as soon as all those chunks are done.
template <class Fn>
class Prepared {
 public:
  Prepared(Team& team, int64_t at, int64_t rows, const Activations& shared, Fn fn)
      : rows_(rows), act_(shared), fn_(fn), ready_(rows > kOwnRows) {
    if (ready_) team.stage(at, rows, [&](int64_t row, bool) { fn_(act_, row); });
  }

  const Activations& operator()() {
    if (!ready_) make();
    return act_;
  }

 private:
  void make() {
    thread_local std::vector<char> memory;
    const int64_t width = act_.width, blocks = rows_ * width / kBlock;
    memory.resize(static_cast<size_t>(rows_ * width * (act_.wide ? 5 : 1) + blocks * 12 + 5 * 64 + 64));
    void* start = memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64);
    Arena arena(start, memory.size() - 64);
    act_ = take_activations(arena, rows_, width, act_.wide != nullptr);
    for (int64_t row = 0; row < rows_; ++row) fn_(act_, row);
    ready_ = true;
  }

  const int64_t rows_;
  Activations act_;
  const Fn fn_;
  bool ready_;
};

// Several products of the same rows in one stage; `next`: what the next such stage reads.
template <class Rows>
void product_stage(const Kernels& k, Team& team, int64_t at, Rows& act, int64_t rows, const Product* products, int count,
                   const Reading& next = {}) {
  Reading now = {{}, count};
  for (int i = 0; i < count; ++i) now.weights[i] = products[i].weight;
  team.stage(at, now.chunks(rows), [&](int64_t chunk, bool last_chunk) {
    const int64_t ahead = distance(team, now.address(rows, chunk), now, next, rows, chunk, last_chunk);
    for (int i = 0; i < count; ++i) {
      const Weight& w = *products[i].weight;
      const int64_t step = tiles_per_chunk(w, rows), mine = chunks_of(w, rows);
      if (chunk < mine) {
        const int64_t first = chunk * step, last = std::min(w.tiles(), first + step);
        return k.linear_tiles(w, act(), rows, first, last, products[i].out, ahead);
      }
      chunk -= mine;
    }
  });
}

// The new positions of a call, not yet rotated nor in the cache.
struct Place {
  float *k, *v;            // [B, T, K, E]
  const float *cos, *sin;  // [B, T, E / 2]
  const float *q_norm, *k_norm;  // [E] or null
  float eps;
};

// Attention of B lanes with T queries each over a cache [N, K, S, E], of which they are some lanes, into which the new positions are written first
// where `place` says so; without it they are there already and the queries are rotated.
struct Attention {
  float* q;  // [B, T, H, E]
  float* out;      // [B, T, H, E]
  const int32_t* lengths;  // [B], positions before the T new ones
  const int32_t* seats;    // [B], the lane of the cache that each lane of the call is
  char* k_cache;
  char* v_cache;
  float* k_scales;  // [N, K, S] for int8, else null
  float* v_scales;
  KvType type;
  int64_t lanes, cached, tokens, heads, kv_heads, positions, head_dim;  // `cached`: N
  float scale;
  float* parts;  // scratch: attention_floats()
  const Place* place;

  int64_t per_kv() const { return heads / kv_heads; }
  int64_t item() const { return type == KvType::kF32 ? 4 : type == KvType::kBf16 ? 2 : 1; }
  int64_t splits() const { return (positions + kSplit - 1) / kSplit; }
  int64_t start(int64_t lane) const {  // a length beyond the cache would read outside it
    return std::clamp<int64_t>(lengths[lane], 0, std::max<int64_t>(0, positions - tokens));
  }
  // Where a lane's KV head begins in the cache, in positions.
  int64_t place_of(int64_t lane, int64_t kv_head) const {
    return (std::clamp<int64_t>(seats[lane], 0, cached - 1) * kv_heads + kv_head) * positions;
  }
  KvHead head(char* cache, float* scales, int64_t lane, int64_t kv_head) const {
    const int64_t at = place_of(lane, kv_head);
    return {cache + at * head_dim * item(), scales ? scales + at : nullptr, type};
  }
};

constexpr int64_t kQueryTokens = 16;  // tokens per task of many-row attention

inline int64_t attention_tasks(const Attention& a) {
  return a.lanes * a.kv_heads * ((a.tokens + kQueryTokens - 1) / kQueryTokens);
}

inline int64_t attention_floats(int64_t lanes, int64_t tokens, int64_t heads, int64_t kv_heads, int64_t positions,
                                int64_t head_dim) {
  if (tokens <= kFewRows) return lanes * tokens * heads * ((positions + kSplit - 1) / kSplit) * (head_dim + 2);
  const int64_t blocks = (tokens + kQueryTokens - 1) / kQueryTokens;
  return lanes * kv_heads * blocks * attend_block_floats(kQueryTokens * (heads / kv_heads), head_dim);
}

// Stages at and at + 1. For few tokens `out` is left to merge_row: what comes next can do that where it needs the row.
void attend_stages(const Kernels& k, Team& team, int64_t at, const Attention& a);
void merge_row(const Kernels& k, const Attention& a, int64_t row, float* out);

}  // namespace mbjax
