// Which instruction set runs.
#include <cstring>

#include "kernels.h"

namespace mbjax {
namespace {

bool has_avx512() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#else
  return false;
#endif
}

bool has_avx2() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#else
  return false;
#endif
}

const Kernels* usable(const char* name) {
  const Kernels* all[] = {has_avx512() ? avx512_kernels() : nullptr, has_avx2() ? avx2_kernels() : nullptr,
                          neon_kernels(), portable_kernels()};
  for (const Kernels* k : all) {
    if (k && (!name || std::strcmp(k->name, name) == 0)) return k;
  }
  return nullptr;
}

const Kernels*& chosen() {
  static const Kernels* k = usable(nullptr);
  return k;
}

}  // namespace

const Kernels& kernels() { return *chosen(); }

bool select_kernels(const char* name) {
  const Kernels* k = usable(name);
  if (k) chosen() = k;
  return k != nullptr;
}

}  // namespace mbjax
