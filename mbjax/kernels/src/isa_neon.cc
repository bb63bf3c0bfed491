// 64-bit ARM; every such machine has NEON, SDOT is used where setup.py may count on it.
#include "kernels.h"

#if defined(__aarch64__)
#include "simd_neon.h"

namespace {
constexpr int kRowBlock = 2;
constexpr int kHeadVectors = 1;  // of a head's width that the attention sums up at once
constexpr const char* kName = "neon";
}  // namespace

#include "rows.inc"
#include "linear.inc"
#include "attention.inc"
#include "table.inc"

const mbjax::Kernels* mbjax::neon_kernels() { return &kTable; }
#else
const mbjax::Kernels* mbjax::neon_kernels() { return nullptr; }
#endif
