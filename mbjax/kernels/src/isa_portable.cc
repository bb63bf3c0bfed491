// Plain C++, for any machine.
#include "kernels.h"
#include "simd_portable.h"

namespace {
constexpr int kRowBlock = 4;
constexpr int kHeadVectors = 1;  // of a head's width that the attention sums up at once
constexpr const char* kName = "portable";
}  // namespace

#include "rows.inc"
#include "linear.inc"
#include "attention.inc"
#include "table.inc"

const mbjax::Kernels* mbjax::portable_kernels() { return &kTable; }
