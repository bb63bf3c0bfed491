// A few threads going through one program of stages together.
//
// Every member runs the same code. A stage is a number of chunks, cut into one run per member: each takes its own run
// from the front, so that it reads one stretch of memory, and then helps the others from their ends. A stage is over
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

// What the members share. Counters lie on cache lines of their own, for each claim moves its line between cores.
class Stages {
  static constexpr int64_t kMostRuns = 4;  // members beyond share one, so that the counters stay few
  struct alignas(64) Counter {
    std::atomic<uint64_t> value{0};
  };

 public:
  Stages(int64_t stages, int64_t members)
      : runs(std::min(members, kMostRuns)), counters_(static_cast<size_t>(stages * (runs + 1))) {}

  // The counters of stage `at`: one of each run, and the number of finished chunks.
  std::atomic<uint64_t>& run(int64_t at, int64_t i) { return counters_[static_cast<size_t>(at * (runs + 1) + i)].value; }
  std::atomic<uint64_t>& done(int64_t at) { return run(at, runs); }

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

  static void pause(int spins) {
    if (spins > 4096) {  // the other thread has probably lost its core
      std::this_thread::yield();
      return;
    }
#if defined(__x86_64__) || defined(__i386__)
    _mm_pause();
#endif
  }

  const int64_t runs;

 private:
  std::vector<Counter> counters_;
  std::atomic<int64_t> inside_{0};
  std::atomic<bool> closed_{false};
};

// One member's view of the team.
class Team {
 public:
  Team(Stages& stages, int64_t member) : stages_(stages), own_(member % stages.runs) {}

  // Stage number `at`: fn(chunk, last) for every chunk of [0, chunks); returns when all of them are done by someone.
  // `last`: whether the chunk after it is not this member's.
  template <class Fn>
  void stage(int64_t at, int64_t chunks, const Fn& fn) {
    uint64_t mine = 0;
    for (int64_t i = 0; i < stages_.runs; ++i) {
      const int64_t run = (own_ + i) % stages_.runs, first = start(chunks, run), count = start(chunks, run + 1) - first;
      for (int64_t next; (next = take(stages_.run(at, run), count, i == 0)) >= 0; ++mine) {
        fn(first + next, i > 0 || next + 1 == count);
      }
    }
    std::atomic<uint64_t>& done = stages_.done(at);
    if (mine) done.fetch_add(mine, std::memory_order_acq_rel);
    for (int spins = 0; done.load(std::memory_order_acquire) < static_cast<uint64_t>(chunks); ++spins) Stages::pause(spins);
  }

  // Where this member begins in a stage of so many chunks.
  int64_t first(int64_t chunks) const { return start(chunks, own_); }

 private:
  int64_t start(int64_t chunks, int64_t run) const { return chunks * run / stages_.runs; }

  // The next of a run's `count` chunks, from its front or its end; -1 where none is left. A counter holds how many went
  // from the front in its lower half and from the end in its upper one.
  static int64_t take(std::atomic<uint64_t>& counter, int64_t count, bool front) {
    uint64_t seen = counter.load(std::memory_order_relaxed);
    for (;;) {
      const int64_t before = static_cast<uint32_t>(seen), after = static_cast<int64_t>(seen >> 32);
      if (before + after >= count) return -1;
      const uint64_t more = seen + (front ? 1 : uint64_t{1} << 32);
      if (counter.compare_exchange_weak(seen, more, std::memory_order_relaxed)) return front ? before : count - 1 - after;
    }
  }

  Stages& stages_;
  const int64_t own_;
};

// Runs program(team) on this thread and, as far as the pool gets round to it, on its other threads. `program` may
// refer to the caller's stack: nobody is inside it any more when this returns.
template <class Pool, class Program>
void run_team(Pool& pool, int64_t helpers, int64_t stages, const Program& program) {
  auto shared = std::make_shared<Stages>(stages, helpers + 1);
  for (int64_t i = 0; i < helpers; ++i) {
    pool.Schedule([shared, i, &program] {
      if (!shared->enter()) return;
      Team team(*shared, i + 1);
      program(team);
      shared->leave();
    });
  }
  Team team(*shared, 0);
  program(team);
  shared->close();
}

}  // namespace mbjax
