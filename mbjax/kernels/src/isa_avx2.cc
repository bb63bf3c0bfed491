// AVX2 with FMA and F16C; compiled with those instructions switched on, so nothing here may run before the check.
#include "kernels.h"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include "simd_avx2.h"

namespace {
constexpr int kRowBlock = 2;  // 2 x 4 accumulators of 16 registers
constexpr int kHeadVectors = 1;  // of a head's width that the attention sums up at once
constexpr const char* kName = "avx2";
}  // namespace

#include "rows.inc"
#include "linear.inc"
#include "attention.inc"
#include "table.inc"

const mbjax::Kernels* mbjax::avx2_kernels() { return &kTable; }
#else
const mbjax::Kernels* mbjax::avx2_kernels() { return nullptr; }
#endif
