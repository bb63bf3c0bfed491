// A few threads going through one program of stages together.
//
// Every member runs the same code. A stage is a number of chunks that members claim one by one; its end is reached
// when all chunks are done. Whoever arrives late finds finished stages empty and catches up, so nobody ever waits for
// a member that the thread pool has not started yet: the caller alone can do everything.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

namespace mbjax {

class Team {
 public:
  Team(int64_t stages, int64_t members) : stages_(static_cast<size_t>(stages)), members_(members) {}

  // Stage number `at`: fn(chunk) for every chunk of [0, chunks); returns when all of them are done by someone.
  template <class Fn>
  void stage(int64_t at, int64_t chunks, const Fn& fn) {
    Stage& s = stages_[static_cast<size_t>(at)];
    int64_t first = s.next.load(std::memory_order_relaxed);
    while (first < chunks) {
      // A share of what is left: few claims, for each moves a cache line between cores, and small ones at the end.
      const int64_t share = std::max<int64_t>(1, (chunks - first) / (2 * members_));
      if (!s.next.compare_exchange_weak(first, first + share, std::memory_order_relaxed)) continue;
      for (int64_t chunk = first; chunk < first + share; ++chunk) fn(chunk);
      s.done.fetch_add(share, std::memory_order_release);
      first = s.next.load(std::memory_order_relaxed);
    }
    for (int spins = 0; s.done.load(std::memory_order_acquire) < chunks; ++spins) pause(spins);
  }

  // Whether chunks of that stage may be left; what only they need is not worth preparing otherwise.
  bool open(int64_t at, int64_t chunks) const {
    return stages_[static_cast<size_t>(at)].next.load(std::memory_order_relaxed) < chunks;
  }

  bool enter() {
    inside_.fetch_add(1, std::memory_order_acq_rel);
    if (!closed_.load(std::memory_order_acquire)) return true;
    leave();
    return false;
  }
  void leave() { inside_.fetch_sub(1, std::memory_order_acq_rel); }
  void close() {
    closed_.store(true, std::memory_order_release);
    for (int spins = 0; inside_.load(std::memory_order_acquire) > 0; ++spins) pause(spins);
  }

 private:
  struct alignas(64) Stage {
    std::atomic<int64_t> next{0};
    alignas(64) std::atomic<int64_t> done{0};
  };

  static void pause(int spins) {
    if (spins > 4096) {  // the other thread has probably lost its core
      std::this_thread::yield();
      return;
    }
#if defined(__x86_64__) || defined(__i386__)
    _mm_pause();
#endif
  }

  std::vector<Stage> stages_;
  int64_t members_;
  std::atomic<int64_t> inside_{0};
  std::atomic<bool> closed_{false};
};

// Runs program(team) on this thread and, as far as the pool gets round to it, on its other threads. `program` may
// refer to the caller's stack: nobody is inside it any more when this returns.
template <class Pool, class Program>
void run_team(Pool& pool, int64_t helpers, int64_t stages, const Program& program) {
  auto team = std::make_shared<Team>(stages, helpers + 1);
  for (int64_t i = 0; i < helpers; ++i) {
    pool.Schedule([team, &program] {
      if (!team->enter()) return;
      program(*team);
      team->leave();
    });
  }
  program(*team);
  team->close();
}

}  // namespace mbjax
