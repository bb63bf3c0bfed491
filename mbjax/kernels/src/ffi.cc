// The handlers as XLA calls them: buffers are checked here, once, and become the plain structs of kernels.h.
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstring>

#include "ffi_args.h"

namespace mbjax {
namespace {

// An optional float32 vector: [0] stands for none.
const float* vector_or_null(Check& check, const Buffer& b, int64_t n, const char* what) {
  check.that(is(b, ffi::F32, 1) && (dim(b, 0) == 0 || dim(b, 0) == n), what);
  return dim(b, 0) == 0 ? nullptr : static_cast<const float*>(b.untyped_data());
}

Weight weight_of(Check& check, const Buffer& values, const Buffer& scales, const Buffer& mins, int64_t in,
                 int64_t out) {
  Weight w{};
  w.bits = values.element_type() == ffi::S8 ? 8 : 4;
  check.that(is(values, w.bits == 8 ? ffi::S8 : ffi::U8, 4), "weight values must be int8 or uint8 of rank 4");
  check.that(dim(values, 2) == kLanes && dim(values, 3) == 4, "weight values must end in [16, 4]");
  check.that(is(scales, ffi::F16, 3) && dim(scales, 2) == kLanes, "weight scales must be float16 [tiles, groups, 16]");
  const bool asymmetric = dim(mins, 0) != 0;
  check.that(mins.element_type() == ffi::F16, "weight mins must be float16");
  w.width = dim(values, 1) * 4 * 8 / w.bits;
  w.groups = dim(scales, 1), w.out = out;
  check.that(w.tiles() == dim(values, 0) && w.tiles() == dim(scales, 0), "weight tiles do not match the outputs");
  check.that(w.groups > 0 && w.width % (w.groups * kBlock) == 0, "weight groups must be multiples of 32 inputs");
  check.that(!asymmetric || w.bits == 4, "8-bit weights have no mins");
  check.that(in <= w.width, "weight is narrower than its input");
  check.that(!asymmetric || (mins.dimensions().size() == 3 && mins.element_count() == scales.element_count()),
             "weight mins must have the shape of the scales");
  w.values = static_cast<const uint8_t*>(values.untyped_data());
  w.scales = static_cast<const uint16_t*>(scales.untyped_data());
  w.mins = asymmetric ? static_cast<const uint16_t*>(mins.untyped_data()) : nullptr;
  return w;
}

KvType kv_type(Check& check, const Buffer& cache) {
  const ffi::DataType type = cache.element_type();
  check.that(type == ffi::F32 || type == ffi::BF16 || type == ffi::S8, "cache must be float32, bfloat16 or int8");
  check.that(cache.dimensions().size() == 4, "cache must be [N, K, S, E]");
  return type == ffi::F32 ? KvType::kF32 : type == ffi::BF16 ? KvType::kBf16 : KvType::kInt8;
}

void check_scales(Check& check, const Buffer& cache, const Buffer& scales) {
  const bool int8 = cache.element_type() == ffi::S8;
  check.that(scales.element_type() == ffi::F32, "cache scales must be float32");
  check.that(!int8 || static_cast<int64_t>(scales.element_count()) == dim(cache, 0) * dim(cache, 1) * dim(cache, 2),
             "int8 cache needs scales [N, K, S]");
}

float* scales_or_null(const Buffer& cache, const Buffer& scales) {
  return cache.element_type() == ffi::S8 ? static_cast<float*>(scales.untyped_data()) : nullptr;
}

// y = norm(x) W^T + bias.
ffi::Error linear(ffi::ThreadPool pool, Buffer x, Buffer values, Buffer scales, Buffer mins, Buffer norm, Buffer bias,
                  Result y, Result scratch, float eps) {
  Check check;
  check.that(is(x, ffi::F32, 2) && is(*y, ffi::F32, 2) && dim(x, 0) == dim(*y, 0), "x and y must be float32 [R, n]");
  const int64_t rows = dim(x, 0), in = dim(x, 1);
  const Weight w = weight_of(check, values, scales, mins, in, dim(*y, 1));
  const float* norm_weight = vector_or_null(check, norm, in, "norm must be float32 [in]");
  const float* b = vector_or_null(check, bias, w.out, "bias must be float32 [out]");
  if (!check.ok()) return check.error();
  Arena arena(scratch->untyped_data(), scratch->size_bytes());
  const Activations act = take_activations(arena, rows, w.width);
  check.that(!arena.too_small(), "scratch is too small");
  if (!check.ok()) return check.error();
  const Kernels& k = kernels();
  const Product product = {&w, {static_cast<float*>(y->untyped_data()), w.out, b, nullptr}};
  const float* input = static_cast<const float*>(x.untyped_data());
  auto program = [&](Team& team) {
    Prepared ready(team, 0, rows, act, [&](const Activations& to, int64_t row) {
      k.quantize_row(input + row * in, in, norm_weight, eps, to, row);
    });
    product_stage(k, team, 1, ready, rows, &product, 1);
  };
  run_team(pool, helpers(pool, rows * w.tiles() * w.tile_bytes() > 64 * 1024), 2, program);
  return ffi::Error::Success();
}

// Attention over a cache that already holds the T new positions of each lane.
ffi::Error attend(ffi::ThreadPool pool, Buffer q, Buffer lengths, Buffer seats, Buffer k_cache, Buffer v_cache,
                  Buffer k_scales, Buffer v_scales, Result out, Result scratch) {
  Check check;
  Attention a{};
  a.type = kv_type(check, k_cache);
  check.that(is(q, ffi::F32, 4) && is(*out, ffi::F32, 4), "q and out must be float32 [B, T, H, E]");
  a.lanes = dim(q, 0), a.tokens = dim(q, 1), a.heads = dim(q, 2), a.head_dim = dim(q, 3);
  a.cached = dim(k_cache, 0), a.kv_heads = dim(k_cache, 1), a.positions = dim(k_cache, 2);
  check.that(is(lengths, ffi::S32, 1) && dim(lengths, 0) == a.lanes, "lengths must be int32 [B]");
  check.that(is(seats, ffi::S32, 1) && dim(seats, 0) == a.lanes, "seats must be int32 [B]");
  check.that(a.lanes <= a.cached && dim(k_cache, 3) == a.head_dim && a.kv_heads > 0 &&
                 a.heads % a.kv_heads == 0 && a.tokens <= a.positions, "q does not fit the cache");
  check.that(k_cache.size_bytes() == v_cache.size_bytes() && k_cache.element_type() == v_cache.element_type(),
             "keys and values differ in shape or type");
  check.that(head_dim_known(a.head_dim), "head width must be 16, 32, 64, 96, 128 or 256");
  check_scales(check, k_cache, k_scales);
  check_scales(check, v_cache, v_scales);
  if (!check.ok()) return check.error();
  Arena arena(scratch->untyped_data(), scratch->size_bytes());
  a.parts = arena.take<float>(attention_floats(a.lanes, a.tokens, a.heads, a.kv_heads, a.positions, a.head_dim));
  check.that(!arena.too_small(), "scratch is too small");
  if (!check.ok()) return check.error();
  a.q = static_cast<float*>(q.untyped_data()), a.out = static_cast<float*>(out->untyped_data());
  a.lengths = static_cast<const int32_t*>(lengths.untyped_data());
  a.seats = static_cast<const int32_t*>(seats.untyped_data());
  a.k_cache = static_cast<char*>(k_cache.untyped_data()), a.v_cache = static_cast<char*>(v_cache.untyped_data());
  a.k_scales = scales_or_null(k_cache, k_scales), a.v_scales = scales_or_null(v_cache, v_scales);
  a.scale = 1.0f / __builtin_sqrtf(static_cast<float>(a.head_dim));
  const Kernels& k = kernels();
  auto program = [&](Team& team) {
    attend_stages(k, team, 0, a);
    if (a.tokens > kFewRows) return;
    team.stage(2, a.lanes * a.tokens, [&](int64_t row, bool) { merge_row(k, a, row, a.out + row * a.heads * a.head_dim); });
  };
  run_team(pool, helpers(pool, true), 3, program);
  return ffi::Error::Success();
}

// Zeros in huge pages, where the system has them: what XLA hands out fresh has not been touched yet.
ffi::Error zeros(Result out) {
  char* data = static_cast<char*>(out->untyped_data());
  const size_t bytes = out->size_bytes();
#if defined(__linux__)
  constexpr uintptr_t kPage = 4096;
  const uintptr_t first = (reinterpret_cast<uintptr_t>(data) + kPage - 1) / kPage * kPage;
  const uintptr_t last = (reinterpret_cast<uintptr_t>(data) + bytes) / kPage * kPage;
  if (last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);  // a refusal changes nothing
#endif
  std::memset(data, 0, bytes);
  return ffi::Error::Success();
}

}  // namespace
}  // namespace mbjax

#pragma GCC visibility push(default)

XLA_FFI_DEFINE_HANDLER_SYMBOL(mbjax_linear, mbjax::linear,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>().Arg<ffi::AnyBuffer>().Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>().Arg<ffi::AnyBuffer>().Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>().Ret<ffi::AnyBuffer>()
                                  .Attr<float>("eps"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(mbjax_attend, mbjax::attend,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>().Arg<ffi::AnyBuffer>().Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>().Arg<ffi::AnyBuffer>().Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>().Ret<ffi::AnyBuffer>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(mbjax_zeros, mbjax::zeros, ffi::Ffi::Bind().Ret<ffi::AnyBuffer>());

// For Python: the name of the instruction set in use, and another choice of it.
extern "C" const char* mbjax_isa() { return mbjax::kernels().name; }
extern "C" int mbjax_select_isa(const char* name) {
  return mbjax::select_kernels(name[0] ? name : nullptr) ? 1 : 0;
}

#pragma GCC visibility pop
