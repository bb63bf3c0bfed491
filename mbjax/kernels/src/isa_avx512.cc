// AVX-512 with VNNI; compiled with those instructions switched on, so nothing here may run before the check.
#include "kernels.h"

#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#include "simd_avx512.h"

namespace {
constexpr int kRowBlock = 8;  // rows that share a loaded weight: 2 x 8 accumulators of 32 registers
constexpr int kHeadVectors = 4;  // of a head's width that the attention sums up at once
constexpr const char* kName = "avx512vnni";
}  // namespace

#include "rows.inc"
#include "linear.inc"
#include "attention.inc"
#include "table.inc"

const mbjax::Kernels* mbjax::avx512_kernels() { return &kTable; }
#else
const mbjax::Kernels* mbjax::avx512_kernels() { return nullptr; }
#endif
